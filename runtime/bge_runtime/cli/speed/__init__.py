"""``bge-runtime doctor --speed``: command has its table, process a variant in a process."""
