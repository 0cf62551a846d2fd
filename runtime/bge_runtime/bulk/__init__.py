"""Embed files of any size into shards: ``bge-embed`` with a folder as output."""
