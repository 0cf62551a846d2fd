"""Graph passes for numbers in 16 and 8 bits. They are used through `bge_export.passes`."""
