"""Readers of input files, one module a format."""
