"""Serve models over HTTP, as ``bge-serve`` does."""
