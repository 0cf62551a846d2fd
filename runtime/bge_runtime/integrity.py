"""File hashes, and a memory of which large files were already hashed.

Hashing 18 GB of weights at every start would take longer than the start. A weight
file is hashed the first time this machine sees it; the result is remembered under
the cache folder for as long as path, size, inode and modification time stay the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

_CHUNK_BYTES = 1 << 22


def cache_folder() -> Path:
    """The folder for what may be made anew: ``$XDG_CACHE_HOME/bge-runtime``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bge-runtime"


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
    note = _note_path(path)
    identity = _identity(path)
    # Whatever is wrong with a note, the file itself can be hashed.
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        data = json.loads(note.read_text())
        if data["identity"] == identity:
            return str(data["sha256"])
    sha256 = file_sha256(path)
    remember(path, sha256, identity)
    return sha256


def remember(path: Path, sha256: str, identity: list[int] | None = None) -> None:
    """Note a hash just computed. A cache that cannot be written costs time, no more."""
    note = _note_path(path)
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        # Written whole under another name: two processes may do this at once.
        draft = note.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"identity": identity or _identity(path), "sha256": sha256}))
        draft.replace(note)


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _note_path(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{key}.json"
