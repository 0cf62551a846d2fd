"""Writers of shards, one module a format."""
