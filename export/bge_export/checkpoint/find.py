"""Find a checkpoint: a local folder, or a repository to download from the Hub."""

from __future__ import annotations

from pathlib import Path

from bge_runtime.errors import ExportError
from bge_runtime.sources import (
    CHECKPOINT_FILES,
    CHECKPOINT_PICKLES,
    extract_hub_id,
    find_model,
    is_hub_id,
    query_hub,
    translate_hub_errors,
)
from bge_runtime.system import local_path

_IGNORED_FILES = ["onnx/*", "openvino/*"]
"""Exports by others, which many repositories hold."""


def find_checkpoint(
    source: str, *, revision: str | None = None, offline: bool = False
) -> tuple[Path, str | None]:
    """Locate a local folder, or download a repository from the Hub.

    Args:
        source: Path of a folder, or a Hub ID such as ``BAAI/bge-large-en-v1.5``.
        revision: Branch, tag or commit on the Hub.
        offline: Use only the Hub's local cache.

    Returns:
        The folder, and the commit it was resolved to (None for a local folder).

    Raises:
        ExportError: If there is no such folder.
        HubError: If it cannot be downloaded.
    """
    folder = local_path(source, error=ExportError)
    if folder.exists():
        if revision is not None:
            raise ExportError(f"revision={revision!r} is for Hub IDs, and {source} is a local path")
        return folder, None
    if not is_hub_id(source):
        spec = find_model(source)
        meant = spec.hub_id if spec and "/" not in source else extract_hub_id(source)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ExportError(f"{source} is neither a folder nor a Hub ID such as OWNER/NAME{hint}")
    # Imported here: slow, and not needed for a local folder.
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    with translate_hub_errors(source, revision, offline="--offline" if offline else None):
        cached = isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str)
        offline = query_hub(source, revision, cached=cached, offline=offline) is None
        snapshot = snapshot_download(
            source,
            revision=revision,
            allow_patterns=list(CHECKPOINT_FILES),
            ignore_patterns=_IGNORED_FILES,
            local_files_only=offline,
        )
        if not any(Path(snapshot).rglob("*.safetensors")):
            snapshot_download(
                source,
                revision=Path(snapshot).name,
                allow_patterns=list(CHECKPOINT_PICKLES),
                local_files_only=offline,
            )
    return Path(snapshot), Path(snapshot).name
