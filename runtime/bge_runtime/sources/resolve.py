"""Where a model comes from: a folder, the hub, the cache, or an export on the spot."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bge_runtime.bundle import FILE_NAME, FORMAT_VERSION, Bundle, explain_no_model, is_model
from bge_runtime.errors import BgeError, BundleError, ExportError, HubError, ModelNotFoundError
from bge_runtime.sources.hub import find_snapshot, hub_id_in, is_hub_id
from bge_runtime.sources.identity import Identity, identify
from bge_runtime.sources.on_demand import Use, graphs_for
from bge_runtime.sources.registry import ENCODER_ONLY_BASE, find_model
from bge_runtime.system import cache, expand_user, file_hash, local_path, on_terminal, read_json

logger = logging.getLogger(__name__)

CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.py", "*_linear.pt")
"""Names of what an export reads from a checkpoint; the last one are the heads of M3."""

CHECKPOINT_PICKLES = ("pytorch_model*.bin",)
"""Names of weights that it reads if there are no others."""

_EXPORT_NEEDS = ("onnx_ir", "onnxscript", "safetensors", "torch", "transformers")
_LAST_WORDS = 12
_TERMINATION_S = 20

FOR_PYTHON = "BGE_EXPORT_FOR_PYTHON"
"""Environment variable that marks an export started by a program, which words errors itself."""

WARNING_START = "bge-export: warning: "
"""What begins a line of an export that is passed on to whoever opens the model."""

_ERROR = "bge-export: "
_EXPORT_OPTION = re.compile(r"(?<![\w-])(--(?:target|precision))\b")
"""Options of the exporter that a caller has none for."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is to be exported, if it has to be.

    Attributes:
        model_class: FlagEmbedding's class, if the user gave one, for a model that tells none by
            itself. Its default pooling is taken where nothing says how the model pools.
        pooling: ``"cls"`` or ``"mean"``; None for the model's own.
        trust_remote_code: Run code from the checkpoint, in the exporting process.
        use: How it is to be run; None for the graphs that an export brings unasked.
    """

    model_class: str | None = None
    pooling: str | None = None
    trust_remote_code: bool = False
    use: Use | None = None


def find_bundle(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    options: ExportOptions | None = None,
    export: bool = True,
    check_class: Callable[[str, str], None] | None = None,
) -> Path:
    """Find the bundle of a model, and make it if need be.

    In this order: a folder that is a bundle; a hub repository that is one, which is
    downloaded; the bundle that was made of a checkpoint before, in the cache; one that
    is exported now, in a process of its own, where the export extra is installed.

    A checkpoint on the hub goes by its commit, one in a folder by the content of its
    files, so that a retrained checkpoint at the same path never serves old vectors.

    Args:
        model: Folder of a bundle or of a checkpoint, or a hub id ``OWNER/NAME``.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder of the hub's cache; None for its default.
        options: How to export; None for the model's own ways.
        export: Whether to export at all.
        check_class: Given the name and the class of a checkpoint, raises if the caller does not
            open such a model. A bundle's class is in its manifest.

    Returns:
        Folder of the bundle, absolute. Its files are not checked.

    Raises:
        ModelNotFoundError: If there is no such model, or it would have to be exported
            and cannot be here; the message holds the command.
        HubError: If the hub does not give it.
        BundleError: If a hub repository is a bundle with a damaged manifest.
        EngineError: If no export brings a graph that runs as asked, or runs so on this machine.
        ExportError: If the export fails, or would: the checkpoint's name means another kind of
            model than it is, or nothing says how it pools.
        TypeError: If ``model`` is neither a string nor a path.
        ValueError: If a revision is given for a folder.
    """
    options = options or ExportOptions()
    place = _locate(model, revision, cache_dir, options)
    if isinstance(place, Path):
        return place
    name = str(model)
    class_is_given = options.model_class is not None
    encoder = _modules(place.folder).get("Transformer", place.folder)
    found = identify(place.source, encoder, _config(encoder), class_is_given=class_is_given)
    model_class = found.model_class or options.model_class
    if check_class is not None and model_class is not None:
        check_class(found.name, model_class)
    if export and not class_is_given:
        _check_pooling(name, place.folder, found, options)
    graphs = graphs_for(options.use, model_class) if options.use else ()
    content = _content(place.folder) if place.revision is None else f"{name}@{place.revision}"
    # A bundle is of the class that the model is of, whichever class opens it.
    entry = partial(_entry, found.name, content, model_class, graphs)
    made = _made_before(entry, options.pooling)
    if made is not None:
        return made
    if class_is_given:
        options = replace(options, model_class=model_class)
    missing = [package for package in _EXPORT_NEEDS if importlib.util.find_spec(package) is None]
    if missing or not export:
        reason = "that is a checkpoint, of which no whole bundle is in the cache"
        if missing and export:
            reason += f", and {missing[0]} is not installed to make one"
        local = Path(place.source).name
        raise _not_found(
            name,
            reason,
            source=place.source,
            output=f"{local}-bundle" if place.revision is None else local,
            revision=place.revision,
            options=options,
            graphs=graphs,
        )
    return _export(place, entry(options.pooling), cache_dir, options, graphs)


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    """A checkpoint that was found.

    Attributes:
        source: Its hub id, or its absolute path.
        folder: Where the files are that tell what it is.
        revision: Its commit on the hub; None for a folder.
    """

    source: str
    folder: Path
    revision: str | None


def _locate(
    model: str | Path, revision: str | None, cache_dir: str | None, options: ExportOptions
) -> Path | _Checkpoint:
    """Find the folder of a bundle, or a checkpoint; what it raises is in `find_bundle`."""
    folder = local_path(model, error=ModelNotFoundError)
    name = str(model)
    if folder.exists() and revision is not None:
        raise ValueError(f"revision={revision!r} is for hub ids, and {name} is a local path")
    if (folder / FILE_NAME).is_file():
        return folder
    if folder.exists():
        if not is_model(folder):
            raise ModelNotFoundError(f"no model at {name!r}: {explain_no_model(folder)}")
        return _Checkpoint(source=str(folder), folder=folder, revision=None)
    if not is_hub_id(name):
        if (meant := hub_id_in(name)) is not None:
            raise ModelNotFoundError(
                f"no model at {name!r}: {explain_no_model(folder)}; did you mean the hub id "
                f"{meant}?"
            )
        facts = find_model(name)
        raise _not_found(
            name,
            explain_no_model(folder),
            source=facts.hub_id if facts else "MODEL",
            output=folder.name,
            options=options,
        )
    try:
        snapshot = find_snapshot(name, revision=revision, cache_dir=cache_dir)
    except HubError as error:  # the name may also be a mistyped path
        raise HubError(f"there is no folder {name!r}; {error}") from error
    if snapshot.is_bundle:
        return snapshot.folder
    return _Checkpoint(source=name, folder=snapshot.folder, revision=snapshot.commit)


def _check_pooling(name: str, folder: Path, found: Identity, options: ExportOptions) -> None:
    """Check that something says how a checkpoint pools, where no class brings its default.

    Before the cache is looked into, which may hold a bundle that was made with a default.

    Raises:
        ExportError: If nothing does.
    """
    settled = options.pooling or found.facts or found.model_class not in (None, ENCODER_ONLY_BASE)
    module = _modules(folder).get("Pooling", folder / "1_Pooling")
    if not settled and not (module / "config.json").is_file():
        raise ExportError(
            f"nothing says how {name} pools: it has no 1_Pooling folder, and its name is not a "
            "known model's. Pass pooling_method='cls' (as BGE is trained) or "
            "pooling_method='mean'; or pass the folder that "
            f"`bge-export {shlex.quote(name)} --pooling cls` writes"
        )


def _modules(folder: Path) -> dict[str, Path]:
    """List the folders of a sentence-transformers folder's modules, by their kind."""
    # What is wrong with that file is for the export to say.
    with contextlib.suppress(BgeError, OSError, LookupError, TypeError):
        modules = read_json(folder / "modules.json", error=ModelNotFoundError, kind=list)
        return {
            str(module["type"]).rpartition(".")[2]: folder / str(module["path"])
            for module in modules
        }
    return {}


def _config(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(BgeError, OSError):  # for the export to say, too
        config: dict[str, Any] = read_json(folder / "config.json", error=ModelNotFoundError)
        return config
    return {}


def _content(folder: Path) -> str:
    """Hash a checkpoint: its files and those of its sentence-transformers modules."""
    folders = [folder, folder / "1_Pooling"]  # read whether or not there is a list of modules
    folders += sorted({*_modules(folder).values()} - {*folders})
    files = sorted(
        path
        for place in folders
        for pattern in (*CHECKPOINT_FILES, *CHECKPOINT_PICKLES)
        for path in place.glob(pattern)
        if path.is_file()
    )
    try:
        hashes = [(os.path.relpath(path, folder), file_hash.remembered_sha256(path))
                  for path in files]  # fmt: skip
    except OSError as error:
        raise ModelNotFoundError(f"cannot read the checkpoint {folder}: {error}") from error
    return json.dumps(hashes)


def _entry(
    name: str,
    content: str,
    model_class: str | None,
    graphs: tuple[str, ...],
    pooling: str | None,
) -> Path:
    from bge_runtime._version import __version__

    made_of = [content, model_class, pooling, __version__, FORMAT_VERSION, *graphs]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    try:
        return cache.cache_folder() / "bundles" / f"{name}-{key}"
    except OSError as error:
        raise ExportError(f"{name} is a checkpoint, and {error}") from error


def _made_before(entry: Callable[[str | None], Path], pooling: str | None) -> Path | None:
    for asked in dict.fromkeys((None, pooling)):
        if (made := _whole_bundle(entry(asked))) is not None:
            own = made.manifest.model.pooling
            if pooling in (None, own):
                return made.path
    return None


def _whole_bundle(entry: Path) -> Bundle | None:
    """Open a bundle of the cache; None if it is not there, or damaged, and has to be made.

    Whether it has changed is found when it is opened for use.
    """
    try:
        bundle = Bundle.at(entry)
        for name, file in bundle.manifest.files.items():
            if (entry / name).stat().st_size != file.size_bytes:
                raise BundleError(f"{entry / name} is cut short")
    except ModelNotFoundError:
        return None
    except (BgeError, OSError) as error:
        logger.warning("the cache's bundle %s is damaged, and passed over: %s", entry, error)
        return None
    return bundle


def _export(
    place: _Checkpoint,
    entry: Path,
    cache_dir: str | None,
    options: ExportOptions,
    graphs: tuple[str, ...],
) -> Path:
    source = place.source
    with _only_here(entry):
        if _whole_bundle(entry) is not None:  # by whoever held the lock
            return entry
        # What an exporter that was killed has left; nobody else is at it now.
        for leftover in (entry, *entry.parent.glob(f".{entry.name}.partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        command = _command(source, entry, place.revision, options, graphs)
        logger.warning("no bundle of %s in the cache; exporting it once, to %s", source, entry)
        environment = {**os.environ, FOR_PYTHON: "1"}
        if cache_dir is not None:
            folder = expand_user(cache_dir, error=ExportError)
            environment["HF_HUB_CACHE"] = str(folder.absolute())
        status, words = _run([sys.executable, "-m", "bge_export.cli", *command], environment)
        if not (entry / FILE_NAME).is_file():
            raise ExportError(
                f"{source} could not be exported{_told(words, status)}\nTo try it by hand:\n"
                f"    {shlex.join(['bge-export', *command])}"
            )
    return entry


@contextlib.contextmanager
def _only_here(entry: Path) -> Iterator[None]:
    """Keep every other process from exporting the same; wait for one that does."""
    from filelock import FileLock, Timeout

    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.parent / f".{entry.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("another process is exporting %s; waiting for it", entry.name)
            lock.acquire()  # freed by the system if that process dies
    except (OSError, NotImplementedError) as error:  # the latter, where files cannot be locked
        raise ExportError(
            f"cannot write to the cache {entry.parent}: {error}. Set XDG_CACHE_HOME to a folder "
            "that can be written, or export the model by hand and pass its folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run an export, show how far it is, and give its exit status and last words."""
    words: deque[str] = deque(maxlen=_LAST_WORDS)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(  # noqa: S603  # our own module
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Also ends a line where a progress bar goes back to its start.
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        )
        bar = None
        if on_terminal():
            bar = stack.enter_context(
                tqdm(desc="exporting", bar_format="{desc} {elapsed}{postfix}")
            )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if not (said := line.strip()):
                    continue
                words.append(said)
                level = logging.WARNING if said.startswith(WARNING_START) else logging.INFO
                logger.log(level, "export: %s", said)
                if bar is not None:
                    bar.set_postfix_str(said[:80])
            return process.wait(), list(words)
        except BaseException:  # an interrupt, say: it cleans up after itself, before the lock goes
            process.terminate()
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TERMINATION_S)
            finally:
                process.kill()  # if it has not ended by then, or at a second interrupt
                process.wait()
            raise


def _told(words: Sequence[str], status: int) -> str:
    """Return what an exporter's last words come to: its error, or all of them if it has none."""
    for index, line in enumerate(words):
        if line.startswith(_ERROR) and not line.startswith(WARNING_START):
            message = "\n".join(words[index:]).removeprefix(_ERROR)
            return ": " + _EXPORT_OPTION.sub(r"bge-export's \1", message)
    listed = "\n".join(f"    {line}" for line in words)
    return f" (exit status {status}). Its last words:\n{listed}"


def _command(
    source: str,
    output: Path | str,
    revision: str | None,
    options: ExportOptions,
    graphs: tuple[str, ...],
) -> list[str]:
    command = [source, "--output", str(output), *graphs]
    for option, value in (
        ("--revision", revision),
        ("--pooling", options.pooling),
        ("--model-class", options.model_class),
    ):
        if value is not None:
            command += [option, value]
    return [*command, "--trust-remote-code"] if options.trust_remote_code else command


def _not_found(
    name: str,
    found: str,
    *,
    source: str,
    output: str,
    revision: str | None = None,
    options: ExportOptions,
    graphs: tuple[str, ...] = (),
) -> ModelNotFoundError:
    command = shlex.join(["bge-export", *_command(source, output, revision, options, graphs)])
    return ModelNotFoundError(
        f"no bundle at {name!r}: {found}. Export the model once, where PyTorch is installed "
        f"(pip install 'bge-runtime[export]'), with\n    {command}\nand pass that folder."
    )
