"""Export a checkpoint with ``bge-export`` in a subprocess, so that PyTorch is never loaded here."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_runtime.bundle import FILE_NAME
from bge_runtime.errors import ExportError
from bge_runtime.sources.bundle_cache import open_complete_bundle
from bge_runtime.sources.export_targets import Use
from bge_runtime.system import expand_user, hold_file_lock, on_terminal

logger = logging.getLogger(__name__)

FOR_PYTHON = "BGE_EXPORT_FOR_PYTHON"
"""Environment variable that marks an export started by a program.

Errors are then worded for Python instead of the command line.
"""

WARNING_START = "bge-export: warning: "
"""Start of the lines that are logged as warnings of the calling program."""

_ERROR_START = "bge-export: "
_EXPORT_OPTION = re.compile(r"(?<![\w-])(--(?:target|precision))\b")
"""Options of the exporter that have no argument in Python."""

_REQUIRED_PACKAGES = ("onnx_ir", "onnxscript", "safetensors", "torch", "transformers")
_LAST_LINES = 12
_TERMINATION_S = 20


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """How to export a checkpoint, if it has to be exported.

    Attributes:
        model_class: FlagEmbedding's class to fall back on, if there is one. It counts if the
            checkpoint does not show its class. Its default pooling counts if nothing says how the
            model pools.
        pooling: ``"cls"`` or ``"mean"``; None for the model's own.
        trust_remote_code: Run code from the checkpoint, in the subprocess.
        use: How the model will be run; None for the graphs of a plain export.
    """

    model_class: str | None = None
    pooling: str | None = None
    trust_remote_code: bool = False
    use: Use | None = None


def missing_package() -> str | None:
    """Return the first package of the export extra that is not installed; None if all are."""
    missing = (name for name in _REQUIRED_PACKAGES if importlib.util.find_spec(name) is None)
    return next(missing, None)


def export_arguments(
    source: str,
    output: Path | str,
    *,
    revision: str | None,
    request: ExportRequest,
    graphs: Sequence[str],
) -> list[str]:
    """Return the arguments of ``bge-export`` for a checkpoint.

    Args:
        source: Its path or Hub ID.
        output: Folder of the bundle.
        revision: Branch, tag or commit on the hub.
        request: How to export it.
        graphs: Options for the graphs, from `choose_graphs`.
    """
    arguments = [source, "--output", str(output), *graphs]
    for option, value in (
        ("--revision", revision),
        ("--pooling", request.pooling),
        ("--model-class", request.model_class),
    ):
        if value is not None:
            arguments += [option, value]
    return [*arguments, "--trust-remote-code"] if request.trust_remote_code else arguments


def export_once(
    source: str, folder: Path, arguments: Sequence[str], *, cache_dir: str | None
) -> None:
    """Export a checkpoint into the cache, unless another process does so first.

    Args:
        source: Its path or Hub ID.
        folder: Folder of the bundle in the cache.
        arguments: From `export_arguments`.
        cache_dir: Folder of the hub's cache; None for its default.

    Raises:
        ExportError: If the export fails, or the cache cannot be written.
    """
    with _lock_folder(folder):
        if open_complete_bundle(folder) is not None:  # exported by the process that had the lock
            return
        # Remains of an exporter that was killed. No other process uses them.
        for leftover in (folder, *folder.parent.glob(f".{folder.name}.partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        logger.warning("no bundle of %s in the cache; exporting it once, to %s", source, folder)
        environment = {**os.environ, FOR_PYTHON: "1"}
        if cache_dir is not None:
            hub_cache = expand_user(cache_dir, error=ExportError)
            environment["HF_HUB_CACHE"] = str(hub_cache.absolute())
        status, lines = run_export(
            [sys.executable, "-m", "bge_export.cli", *arguments], environment
        )
        if not (folder / FILE_NAME).is_file():
            raise ExportError(
                f"{source} could not be exported{_explain_failure(lines, status)}\nTo try it by "
                f"hand:\n    {shlex.join(['bge-export', *arguments])}"
            )


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from exporting to the same folder.

    Raises:
        ExportError: If the cache cannot be written or locked.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(
                hold_file_lock(
                    folder.parent / f".{folder.name}.lock",
                    waiting=f"another process is exporting {folder.name}; waiting for it",
                )
            )
        except (OSError, NotImplementedError) as error:  # the latter if files cannot be locked
            raise ExportError(
                f"cannot write to the cache {folder.parent}: {error}. Set XDG_CACHE_HOME to a "
                "writable folder, or export the model by hand and pass its folder"
            ) from error
        yield


def run_export(command: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run an export and log its output; return its exit status and last lines.

    An interrupt terminates the export, and is raised once the export has cleaned up.
    """
    lines: deque[str] = deque(maxlen=_LAST_LINES)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(  # noqa: S603  # our own module
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Text mode also ends a line where a progress bar returns to its start.
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        )
        bar = None
        if on_terminal():
            from tqdm import tqdm

            bar = stack.enter_context(
                tqdm(desc="exporting", bar_format="{desc} {elapsed}{postfix}")
            )
        try:
            assert process.stderr is not None
            for text in process.stderr:
                if not (line := text.strip()):
                    continue
                lines.append(line)
                level = logging.WARNING if line.startswith(WARNING_START) else logging.INFO
                logger.log(level, "export: %s", line)
                if bar is not None:
                    bar.set_postfix_str(line[:80])
            return process.wait(), list(lines)
        except BaseException:  # such as an interrupt: the exporter cleans up before the lock goes
            process.terminate()
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TERMINATION_S)
            finally:
                process.kill()  # if it is still running, or at a second interrupt
                process.wait()
            raise


def _explain_failure(lines: Sequence[str], status: int) -> str:
    """Return the error among an exporter's last lines, or all of them if there is none."""
    for index, line in enumerate(lines):
        if line.startswith(_ERROR_START) and not line.startswith(WARNING_START):
            message = "\n".join(lines[index:]).removeprefix(_ERROR_START)
            return ": " + _EXPORT_OPTION.sub(r"bge-export's \1", message)
    listed = "\n".join(f"    {line}" for line in lines)
    return f" (exit status {status}). Its last lines:\n{listed}"
