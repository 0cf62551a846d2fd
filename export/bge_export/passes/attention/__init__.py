"""Graph passes for attention. They are used through `bge_export.passes`."""
