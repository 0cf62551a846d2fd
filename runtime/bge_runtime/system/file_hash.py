"""Hashes of files, remembered for large files.

Hashing 18 GB of weights would take longer than the rest of a start. So a file of weights is hashed
once on each machine, and the cache keeps the hash while path, size, inode and times stay the same.
The times include the change time of the inode, which nobody can set back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

from bge_runtime.system import cache
from bge_runtime.system.locks import KeyLocks

_CHUNK_BYTES = 1 << 22
_KIND = "hashes"
_hashing = KeyLocks()


def file_sha256(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Args:
        path: The file.
        on_bytes: Receives the number of bytes that are read, bit by bit; what it raises ends that.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()


def remembered_sha256(path: Path, on_bytes: Callable[[int], object] | None = None) -> str:
    """Return the SHA-256 of a file, from the cache if the file is unchanged.

    Args:
        path: The file.
        on_bytes: As in `file_sha256`.

    Raises:
        OSError: If it cannot be read.
    """
    resolved = str(path.resolve())
    with _hashing[resolved]:
        identity = _identity(path)
        known = cache.recall(_KIND, resolved)
        # If the cached document is damaged, the file is hashed again.
        with contextlib.suppress(TypeError, LookupError):
            if known["identity"] == identity:
                return str(known["sha256"])
        sha256 = file_sha256(path, on_bytes)
        remember(path, sha256, identity)
        return sha256


def remember(path: Path, sha256: str, identity: list[int] | None = None) -> None:
    """Write a hash to the cache."""
    document = {"identity": identity or _identity(path), "sha256": sha256}
    cache.note(_KIND, str(path.resolve()), document)


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
