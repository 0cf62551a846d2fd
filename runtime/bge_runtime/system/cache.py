"""The cache folder, for data that can be recreated: hashes, parities, exported bundles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from bge_runtime.errors import BgeError
from bge_runtime.system.files import read_json


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/bge-runtime``, by default in ``~/.cache``, as an absolute path.

    Raises:
        OSError: If there is no home folder, or the path is relative and the current folder is
            gone.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # an unknown user, for example in a container
        raise OSError("there is no home folder for the cache; set XDG_CACHE_HOME") from error
    return base.absolute() / "bge-runtime"


def recall(kind: str, key: str) -> Any:
    """Return a document that `note` wrote; None if there is none that can be read."""
    with contextlib.suppress(OSError, BgeError):
        return read_json(_path(kind, key), error=BgeError, kind=object)
    return None


def note(kind: str, key: str, document: object) -> None:
    """Write a document. If the cache cannot be written, do nothing: that only costs time.

    Args:
        kind: Folder for documents of this kind.
        key: Any text; its hash is the file's name.
        document: A value that JSON can hold.
    """
    with contextlib.suppress(OSError):
        path = _path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed once it is complete, since other processes and threads may do the same.
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            draft.write_text(json.dumps(document), encoding="utf-8")
            draft.replace(path)
        finally:  # the disk may be full, or a signal may arrive
            draft.unlink(missing_ok=True)


def _path(kind: str, key: str) -> Path:
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder() / kind / f"{name}.json"
