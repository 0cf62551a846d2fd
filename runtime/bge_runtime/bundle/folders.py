"""Explain what is wrong with a folder that is not a model, and what to pass or do instead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from bge_runtime.bundle.manifest import FILE_NAME
from bge_runtime.errors import BundleError
from bge_runtime.system import cache_folder, read_json

CHECKPOINT_MARKS = ("config.json", "modules.json")
"""Files that make a folder a checkpoint."""

ADAPTER_FILE = "adapter_config.json"
"""File of a LoRA adapter, which changes the weights of another model."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf", ".onnx", ".h5", ".msgpack")
_HUB_FOLDER = "models--"
_MAX_FOLDERS = 200
_MAX_NAMES = 3


def explain_no_model(path: Path) -> str:
    """Return what a path holds instead of a model, and what to pass instead."""
    if not path.exists():
        dangling = path.is_symlink()
        return (
            f"that is a link to {path.readlink()}, which does not exist"
            if dangling
            else "there is no such folder"
        )
    if not path.is_dir():
        return f"that is a file; pass {path.parent if is_model(path.parent) else 'a folder'}"
    if (path / ADAPTER_FILE).is_file():
        return explain_adapter(path)
    return _explain_hub_cache(path) or _explain_other_folder(path)


def is_model(folder: Path) -> bool:
    """Return whether a folder looks like a bundle or a checkpoint."""
    return any((folder / mark).is_file() for mark in (FILE_NAME, *CHECKPOINT_MARKS))


def explain_adapter(folder: Path) -> str:
    """Return which model a LoRA adapter changes, and how to merge the two."""
    base = None
    with contextlib.suppress(BundleError):
        adapter = read_json(folder / ADAPTER_FILE, error=BundleError, default={})
        base = adapter.get("base_model_name_or_path")
    merged = folder / "merged_model"  # written by FlagEmbedding's trainers
    remedy = (
        f"Pass {merged}, which holds the merged model"
        if is_model(merged)
        else "Merge the two (peft's merge_and_unload), save the model to another folder and "
        "pass that"
    )
    return (
        f"that folder holds a LoRA adapter ({ADAPTER_FILE}), and its changes to "
        f"{base or 'another model'} would be missing from the vectors. {remedy}"
    )


def _explain_hub_cache(path: Path) -> str | None:
    """Return which model to pass if a path is the hub's cache, or a repository in it."""
    if not (path / "snapshots").is_dir():
        repositories = sorted(path.glob(f"{_HUB_FOLDER}*--*"))
        if not repositories:
            return None
        return (
            "that is the hub's cache; pass the Hub ID of a model in it, such as "
            f"{_hub_id(repositories[0])}"
        )
    hub_id = _hub_id(path) if path.name.startswith(_HUB_FOLDER) else None
    snapshots = sorted(
        (place for place in (path / "snapshots").iterdir() if is_model(place)),
        key=lambda place: place.stat().st_mtime,
    )
    if not snapshots:
        return (
            "that is a repository of the hub's cache, and it holds no snapshot of a model. Pass "
            f"the Hub ID{f' {hub_id}' if hub_id else ''} to download it"
        )
    return (
        f"that is a repository of the hub's cache. Pass its Hub ID{f' {hub_id}' if hub_id else ''}"
        f", or its snapshot {snapshots[-1]}"
    )


def _hub_id(path: Path) -> str:
    return path.name.removeprefix(_HUB_FOLDER).replace("--", "/")


def _explain_other_folder(path: Path) -> str:
    if below := list(islice(_models_below(path), _MAX_NAMES)):
        return f"that folder holds no model, but {' and '.join(map(str, below))} does; pass that"
    names = sorted(entry.name for entry in path.iterdir())
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    if not names:
        found = "that folder is empty"
    elif weights:
        found = f"that folder holds no model: it has {weights[0]}, and no config.json"
    else:
        found = (
            f"that folder holds no model: it has no {FILE_NAME} of a bundle and no config.json of "
            "a checkpoint"
        )
    return f"{found}; pass the folder that bge-export or save_pretrained wrote"


def _models_below(folder: Path) -> Iterator[Path]:
    """List folders of models, one and two levels below; large folders are read in part."""
    for pattern in ("*", "*/*"):
        for place in sorted(islice(folder.glob(pattern), _MAX_FOLDERS)):
            if place.is_dir() and is_model(place) and place.name != "1_Pooling":
                yield place


def explain_renewal(folder: Path) -> str:
    """Return how to restore a damaged bundle, depending on where it is."""
    try:
        ours = folder.is_relative_to(cache_folder() / "bundles")
    except OSError:
        ours = False
    if ours:
        return f"delete {folder}, which is a cache: it will be exported again"
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(_HUB_FOLDER):
        return (
            f"fetch it again with `hf download {_hub_id(folder.parent.parent)} --revision "
            f"{folder.name} --force-download`"
        )
    return "copy the bundle again, or export it again with bge-export --force"
