"""File hashes, and a memory of which large files were already hashed.

Hashing 18 GB of weights at every start would take longer than the start. A weight
file is hashed the first time this machine sees it; the result is remembered in the
cache for as long as path, size, inode and times stay the same. The time of the last
change of the inode is among them: unlike that of the content, nobody can set it back.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from bge_runtime.system import cache
from bge_runtime.system.locks import KeyLocks

_CHUNK_BYTES = 1 << 22
_KIND = "hashes"
_hashing = KeyLocks()


def file_sha256(path: Path) -> str:
    """Hash a file.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """Hash a file, unless the same file was hashed before.

    Raises:
        OSError: If it cannot be read.
    """
    resolved = str(path.resolve())
    with _hashing[resolved]:
        identity = _identity(path)
        known = cache.recall(_KIND, resolved)
        # Whatever is wrong with a note, the file itself can be hashed.
        with contextlib.suppress(TypeError, LookupError):
            if known["identity"] == identity:
                return str(known["sha256"])
        sha256 = file_sha256(path)
        remember(path, sha256, identity)
        return sha256


def remember(path: Path, sha256: str, identity: list[int] | None = None) -> None:
    """Note a hash just computed."""
    document = {"identity": identity or _identity(path), "sha256": sha256}
    cache.note(_KIND, str(path.resolve()), document)


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
