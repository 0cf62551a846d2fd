"""Contents of damaged files, as users find them on disk."""

from __future__ import annotations

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1303015\n"
"""A Git LFS pointer instead of the file itself."""

DEEP = "[" * 200_000
"""JSON nested deeper than Python's parser accepts."""
