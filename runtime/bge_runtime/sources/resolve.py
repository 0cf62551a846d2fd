"""Find the bundle of a model: in a folder, on the hub, in the cache, or by exporting it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bge_runtime.bundle import FILE_NAME, explain_no_model, is_model
from bge_runtime.errors import ExportError, HubError, ModelNotFoundError
from bge_runtime.sources.bundle_cache import CacheKey
from bge_runtime.sources.checkpoint_files import hash_checkpoint, module_folders, read_config
from bge_runtime.sources.export_subprocess import (
    ExportRequest,
    export_arguments,
    export_once,
    missing_package,
)
from bge_runtime.sources.export_targets import choose_graphs
from bge_runtime.sources.hub import extract_hub_id, find_snapshot, is_hub_id
from bge_runtime.sources.identity import Identity, identify
from bge_runtime.sources.known_models import find_model
from bge_runtime.sources.model_classes import ENCODER_ONLY_BASE
from bge_runtime.system import local_path


def find_bundle(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    request: ExportRequest | None = None,
    export: bool = True,
    check_class: Callable[[str, str], None] | None = None,
) -> Path:
    """Return the folder of a model's bundle; export the model if there is none.

    The first of these is used: a folder that is a bundle; a hub repository that is one, which
    is downloaded; a bundle in the cache; a new export, in a subprocess, if the export extra is
    installed.

    A checkpoint on the hub is identified by its commit, one in a folder by the content of its
    files. So a retrained checkpoint at the same path never serves old vectors.

    Args:
        model: Folder of a bundle or of a checkpoint, or a Hub ID ``OWNER/NAME``.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder of the hub's cache; None for its default.
        request: How to export; None for the model's defaults.
        export: Whether to export at all.
        check_class: Called with the name and class of a checkpoint. It raises if the caller does
            not open such models. A bundle's class is in its manifest.

    Returns:
        An absolute path. The bundle's files are not checked.

    Raises:
        ModelNotFoundError: If there is no such model, or it cannot be exported here. The message
            holds the command that exports it.
        HubError: If the hub does not have it or cannot be reached.
        BundleError: If a hub repository is a bundle with a damaged manifest.
        EngineError: If no graph can be exported, or run on this machine, as asked.
        ExportError: If the export fails; if the checkpoint is named after another kind of model;
            or if nothing says how it pools.
        TypeError: If ``model`` is neither a string nor a path.
        ValueError: If a revision is given for a folder.
    """
    request = request or ExportRequest()
    located = _locate(model, revision, cache_dir, request)
    if isinstance(located, Path):
        return located
    has_default_class = request.model_class is not None
    encoder = module_folders(located.folder).get("Transformer", located.folder)
    found = identify(
        located.source, encoder, read_config(encoder), default_class=request.model_class
    )
    model_class = found.model_class or request.model_class
    if check_class is not None and model_class is not None:
        check_class(found.name, model_class)
    if export and not has_default_class:
        _check_pooling(located, found, request)
    graphs = choose_graphs(request.use, model_class) if request.use else ()
    if has_default_class:
        request = replace(request, model_class=model_class)
    content = located.hash_content()
    # Keyed on the checkpoint's class, so FlagModel and FlagAutoModel share one export.
    key = CacheKey(name=found.name, content=content, model_class=model_class, graphs=graphs)
    if (cached := key.find(request.pooling)) is not None:
        return cached
    _check_can_export(located, request, graphs, export=export)
    folder = key.folder(request.pooling)
    arguments = export_arguments(
        located.source, folder, revision=located.commit, request=request, graphs=graphs
    )
    export_once(located.source, folder, arguments, cache_dir=cache_dir)
    return folder


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    """A checkpoint that was found.

    Attributes:
        name: What the user called it.
        source: Its Hub ID or absolute path.
        folder: Folder of the files that identify it.
        commit: Its commit on the hub; None for a local folder.
    """

    name: str
    source: str
    folder: Path
    commit: str | None

    def hash_content(self) -> str:
        """Return its name and commit on the hub, or the hashes of its files.

        Raises:
            ModelNotFoundError: If a file cannot be read.
        """
        if self.commit is None:
            return hash_checkpoint(self.folder)
        return f"{self.name}@{self.commit}"


def _locate(
    model: str | Path, revision: str | None, cache_dir: str | None, request: ExportRequest
) -> Path | _Checkpoint:
    """Return the folder of a bundle, or a checkpoint. For its errors see `find_bundle`."""
    folder = local_path(model, error=ModelNotFoundError)
    name = str(model)
    if folder.exists() and revision is not None:
        raise ValueError(f"revision={revision!r} is for Hub IDs, and {name} is a local path")
    if (folder / FILE_NAME).is_file():
        return folder
    if folder.exists():
        if not is_model(folder):
            raise ModelNotFoundError(f"no model at {name!r}: {explain_no_model(folder)}")
        return _Checkpoint(name=name, source=str(folder), folder=folder, commit=None)
    if not is_hub_id(name):
        if (meant := extract_hub_id(name)) is not None:
            raise ModelNotFoundError(
                f"no model at {name!r}: {explain_no_model(folder)}; did you mean the Hub ID "
                f"{meant}?"
            )
        spec = find_model(name)
        raise _not_found(
            name,
            explain_no_model(folder),
            source=spec.hub_id if spec else "MODEL",
            output=folder.name,
            request=request,
        )
    try:
        snapshot = find_snapshot(name, revision=revision, cache_dir=cache_dir)
    except HubError as error:  # the name may also be a mistyped path
        raise HubError(f"there is no folder {name!r}; {error}") from error
    if snapshot.is_bundle:
        return snapshot.folder
    return _Checkpoint(name=name, source=name, folder=snapshot.folder, commit=snapshot.commit)


def _check_pooling(checkpoint: _Checkpoint, found: Identity, request: ExportRequest) -> None:
    """Check that something says how a checkpoint pools, if no class brings a default.

    This comes before the cache, which may hold a bundle that was exported with a default.

    Raises:
        ExportError: If nothing does.
    """
    settled = request.pooling or found.spec or found.model_class not in (None, ENCODER_ONLY_BASE)
    name, folder = checkpoint.name, checkpoint.folder
    module = module_folders(folder).get("Pooling", folder / "1_Pooling")
    if not settled and not (module / "config.json").is_file():
        raise ExportError(
            f"nothing says how {name} pools: it has no 1_Pooling folder and is not named after a "
            "known model. Pass pooling_method='cls' (as BGE is trained) or "
            "pooling_method='mean'; or pass the folder that "
            f"`bge-export {shlex.quote(name)} --pooling cls` writes"
        )


def _check_can_export(
    checkpoint: _Checkpoint, request: ExportRequest, graphs: Sequence[str], *, export: bool
) -> None:
    """Check that a checkpoint may be exported on this machine.

    Raises:
        ModelNotFoundError: If not.
    """
    missing = missing_package()
    if export and missing is None:
        return
    reason = "that is a checkpoint, and the cache holds no bundle of it"
    if export:
        reason += f"; {missing} is not installed, so it cannot be exported here"
    local = Path(checkpoint.source).name
    raise _not_found(
        checkpoint.name,
        reason,
        source=checkpoint.source,
        output=f"{local}-bundle" if checkpoint.commit is None else local,
        revision=checkpoint.commit,
        request=request,
        graphs=graphs,
    )


def _not_found(
    name: str,
    reason: str,
    *,
    source: str,
    output: str,
    revision: str | None = None,
    request: ExportRequest,
    graphs: Sequence[str] = (),
) -> ModelNotFoundError:
    """Return an error that holds the command to export the model."""
    arguments = export_arguments(source, output, revision=revision, request=request, graphs=graphs)
    return ModelNotFoundError(
        f"no bundle at {name!r}: {reason}. Export the model once, where PyTorch is installed "
        f"(pip install 'bge-runtime[export]'), with\n    {shlex.join(['bge-export', *arguments])}"
        "\nand pass that folder."
    )
