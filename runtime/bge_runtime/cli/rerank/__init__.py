"""``bge-rerank``: command has its options, rows its input and output."""
