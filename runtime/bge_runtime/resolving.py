"""Where a model comes from: a folder, the hub, the cache, or an export on the spot."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bge_runtime import cache, integrity
from bge_runtime.bundle import Bundle
from bge_runtime.errors import BgeError, ExportError, HubError, ModelNotFoundError
from bge_runtime.files import local_path, read_json
from bge_runtime.folders import explain_no_model, is_model
from bge_runtime.hub import find_snapshot, is_hub_id
from bge_runtime.manifest import FILE_NAME, FORMAT_VERSION
from bge_runtime.registry import find_model
from bge_runtime.terminal import on_terminal

logger = logging.getLogger(__name__)

CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.py", "*_linear.pt")
"""Names of what an export reads from a checkpoint; the last one are the heads of M3."""

CHECKPOINT_PICKLES = ("pytorch_model*.bin",)
"""Names of weights that it reads if there are no others."""

_EXPORT_NEEDS = ("onnx_ir", "onnxscript", "safetensors", "torch", "transformers")
_LAST_WORDS = 12


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is to be exported, if it has to be.

    Attributes:
        model_class: FlagEmbedding's class; None for the model's own.
        pooling: ``"cls"`` or ``"mean"``; None for the model's own.
        trust_remote_code: Run code from the checkpoint, in the exporting process.
    """

    model_class: str | None = None
    pooling: str | None = None
    trust_remote_code: bool = False


def find_bundle(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    options: ExportOptions | None = None,
    export: bool = True,
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

    Returns:
        Folder of the bundle, absolute. Its files are not checked.

    Raises:
        ModelNotFoundError: If there is no such model, or it would have to be exported
            and cannot be here; the message holds the command.
        HubError: If the hub does not give it.
        BundleError: If a hub repository is a bundle with a damaged manifest.
        ExportError: If the export fails.
        ValueError: If a revision is given for a folder.
    """
    options = options or ExportOptions()
    folder = local_path(model, error=ModelNotFoundError)
    name = str(model)
    if folder.exists() and revision is not None:
        raise ValueError(f"revision={revision!r} is for hub ids, and {name} is a local path")
    if (folder / FILE_NAME).is_file():
        return folder
    if folder.exists():
        if not is_model(folder):
            raise ModelNotFoundError(f"no model at {name!r}: {explain_no_model(folder)}")
        source, identity = str(folder), _content(folder)
    elif is_hub_id(name):
        try:
            snapshot = find_snapshot(name, revision=revision, cache_dir=cache_dir)
        except HubError as error:  # the name may also be a mistyped path
            raise HubError(f"there is no folder {name!r}; {error}") from error
        if snapshot.bundle is not None:
            return snapshot.bundle
        source, identity, revision = name, f"{name}@{snapshot.commit}", snapshot.commit
    else:
        facts = find_model(name)
        raise _not_found(
            name,
            explain_no_model(folder),
            source=facts.hub_id if facts else "MODEL",
            output=folder.name,
            options=options,
        )
    made = _made_before(source, identity, options)
    if made is not None:
        return made
    missing = [package for package in _EXPORT_NEEDS if importlib.util.find_spec(package) is None]
    if missing or not export:
        reason = "that is a checkpoint, of which no bundle is in the cache"
        if missing and export:
            reason += f", and {missing[0]} is not installed to make one"
        output = f"{folder.name}-bundle" if folder.exists() else folder.name
        raise _not_found(
            name, reason, source=source, output=output, revision=revision, options=options
        )
    return _export(source, _entry(source, identity, options), revision, cache_dir, options)


def _content(folder: Path) -> str:
    """Hash a checkpoint: its files and those of its sentence-transformers modules."""
    folders = [folder, folder / "1_Pooling"]  # read whether or not there is a list of modules
    # What is wrong with that file is for the export to say.
    with contextlib.suppress(BgeError, OSError, LookupError, TypeError):
        modules = read_json(folder / "modules.json", error=ModelNotFoundError, kind=list)
        folders += sorted({folder / str(module["path"]) for module in modules} - {*folders})
    files = sorted(
        path
        for place in folders
        for pattern in (*CHECKPOINT_FILES, *CHECKPOINT_PICKLES)
        for path in place.glob(pattern)
        if path.is_file()
    )
    try:
        hashes = [(str(path.relative_to(folder)), integrity.remembered_sha256(path))
                  for path in files]  # fmt: skip
    except OSError as error:
        raise ModelNotFoundError(f"cannot read the checkpoint {folder}: {error}") from error
    return json.dumps(hashes)


def _entry(source: str, identity: str, options: ExportOptions) -> Path:
    from bge_runtime import __version__

    made_of = [identity, options.model_class, options.pooling, __version__, FORMAT_VERSION]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    return cache.cache_folder() / "bundles" / f"{Path(source).name}-{key}"


def _made_before(source: str, identity: str, options: ExportOptions) -> Path | None:
    own = ExportOptions(model_class=options.model_class)
    for asked in dict.fromkeys((own, options)):
        entry = _entry(source, identity, asked)
        if (entry / FILE_NAME).is_file():
            pooling = Bundle.at(entry).manifest.model.pooling
            if options.pooling in (None, pooling):
                return entry
    return None


def _export(
    source: str,
    entry: Path,
    revision: str | None,
    cache_dir: str | None,
    options: ExportOptions,
) -> Path:
    with _only_here(entry):
        if (entry / FILE_NAME).is_file():  # by whoever held the lock
            return entry
        # What an exporter that was killed has left; nobody else is at it now.
        for leftover in (entry, *entry.parent.glob(f".{entry.name}.partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        command = _command(source, entry, revision, options)
        logger.warning("no bundle of %s in the cache; exporting it once, to %s", source, entry)
        environment = dict(os.environ)
        if cache_dir is not None:
            environment["HF_HUB_CACHE"] = str(Path(cache_dir).expanduser().absolute())
        status, words = _run([sys.executable, "-m", "bge_export.cli", *command], environment)
        if not (entry / FILE_NAME).is_file():
            raise ExportError(
                f"{source} could not be exported (exit status {status}). Its last words:\n"
                + "\n".join(f"    {line}" for line in words)
                + f"\nTo try it by hand:\n    {shlex.join(['bge-export', *command])}"
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
    except OSError as error:
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
                logger.info("export: %s", said)
                if bar is not None:
                    bar.set_postfix_str(said[:80])
            return process.wait(), list(words)
        except BaseException:  # an interrupt, say: it cleans up after itself
            process.terminate()
            raise


def _command(
    source: str, output: Path | str, revision: str | None, options: ExportOptions
) -> list[str]:
    command = [source, "--output", str(output)]
    for option, value in (
        ("--revision", revision),
        ("--model-class", options.model_class),
        ("--pooling", options.pooling),
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
) -> ModelNotFoundError:
    command = shlex.join(["bge-export", *_command(source, output, revision, options)])
    return ModelNotFoundError(
        f"no bundle at {name!r}: {found}. Export the model once, where PyTorch is installed "
        f"(pip install 'bge-runtime[export]'), with\n    {command}\nand pass that folder."
    )
