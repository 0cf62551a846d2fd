"""The folder for what can be made anew at any time: hashes, parities, exported bundles."""

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
    """The folder: ``$XDG_CACHE_HOME/bge-runtime``, by default under ``~/.cache``; absolute.

    Raises:
        OSError: If neither says where it is, or a relative one starts from a folder that is gone.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user whom the system does not know, in a container say
        raise OSError("there is no home folder for the cache; set XDG_CACHE_HOME") from error
    return base.absolute() / "bge-runtime"


def recall(kind: str, key: str) -> Any:
    """Read a note back; None if there is none that can be read."""
    with contextlib.suppress(OSError, BgeError):
        return read_json(_path(kind, key), error=BgeError, kind=object)
    return None


def note(kind: str, key: str, document: object) -> None:
    """Write a note. A cache that cannot be written costs time, no more.

    Args:
        kind: Folder of notes of this kind.
        key: Anything that names it; its hash is the file's name.
        document: What to note, as JSON has it.
    """
    with contextlib.suppress(OSError):
        path = _path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written whole under another name: two processes or threads may do this at once.
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            draft.write_text(json.dumps(document), encoding="utf-8")
            draft.replace(path)
        finally:  # also of a full disk, or a signal
            draft.unlink(missing_ok=True)


def _path(kind: str, key: str) -> Path:
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder() / kind / f"{name}.json"
