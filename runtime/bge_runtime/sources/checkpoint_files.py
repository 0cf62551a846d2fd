"""The files of a checkpoint's folder: what an export reads, and a hash of it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from bge_runtime.errors import BgeError, ModelNotFoundError
from bge_runtime.system import file_hash, read_json

CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.py", "*_linear.pt")
"""Patterns of the files that an export reads. The last one matches the heads of M3."""

CHECKPOINT_PICKLES = ("pytorch_model*.bin",)
"""Patterns of weights that an export reads if there are no others."""


def module_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of each module in ``modules.json``, by its kind, such as ``"Pooling"``.

    Returns:
        Empty if the file is missing or damaged, which the export reports.
    """
    with contextlib.suppress(BgeError, LookupError, TypeError):
        modules = read_json(
            folder / "modules.json", error=ModelNotFoundError, kind=list, default=[]
        )
        return {
            str(module["type"]).rpartition(".")[2]: folder / str(module["path"])
            for module in modules
        }
    return {}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``; empty if missing or damaged, as the export reports."""
    with contextlib.suppress(BgeError):
        return dict(read_json(folder / "config.json", error=ModelNotFoundError, default={}))
    return {}


def hash_checkpoint(folder: Path) -> str:
    """Return the paths and hashes of all files that an export reads.

    Raises:
        ModelNotFoundError: If a file cannot be read.
    """
    folders = [folder, folder / "1_Pooling"]  # read even if modules.json does not name it
    folders += sorted({*module_folders(folder).values()} - {*folders})
    files = sorted(
        path
        for each in folders
        for pattern in (*CHECKPOINT_FILES, *CHECKPOINT_PICKLES)
        for path in each.glob(pattern)
        if path.is_file()
    )
    try:
        hashes = [(os.path.relpath(path, folder), file_hash.remembered_sha256(path))
                  for path in files]  # fmt: skip
    except OSError as error:
        raise ModelNotFoundError(f"cannot read the checkpoint {folder}: {error}") from error
    return json.dumps(hashes)
