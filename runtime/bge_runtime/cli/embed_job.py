"""``bge-embed`` with a folder as output: a job of `bge_runtime.bulk`."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from bge_runtime.cli.embed_model import read_examples
from bge_runtime.cli.streams.input import InputError
from bge_runtime.cli.streams.output import is_descriptor, is_jsonl, is_npy
from bge_runtime.errors import BgeError

if TYPE_CHECKING:
    from bge_runtime.bulk import JobSummary

_FILE_SUFFIXES = (
    ".parquet", ".pq", ".arrow", ".feather", ".ipc", ".csv", ".tsv", ".txt", ".json", ".gz", ".zst",
)  # fmt: skip

_ONLY_FOR_JOBS = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".gz", ".zst", ".bz2")
"""Suffixes of input files that are not lines of text."""


def is_folder(output: str) -> bool:
    """Return whether an output is a folder: no file of a known suffix, no pipe, no device.

    Raises:
        InputError: If it looks like a file that cannot be written.
    """
    if output in ("", "-") or is_descriptor(output):
        return False
    if is_npy(output) or is_jsonl(output):
        if "://" in output:
            raise InputError(f"--output {output} is a file elsewhere: name a folder of shards")
        return False
    if "://" in output:
        return True
    try:
        mode = os.stat(output).st_mode
    except OSError:
        if output.lower().endswith(_FILE_SUFFIXES):
            stem = output.partition(".")[0] or "vectors"
            raise InputError(
                f"--output {output} is neither a .npy nor a .jsonl file, and other formats are "
                f"written to a folder: name one, such as --output {stem}"
            ) from None
        return True
    return stat.S_ISDIR(mode) or stat.S_ISREG(mode)


def check_file_input(source: str) -> None:
    """Check that an input is one that can be embedded to one file.

    Raises:
        InputError: If it is for a folder as output only.
    """
    remedy = "name a folder with --output, such as --output vectors"
    if "://" in source:
        raise InputError(f"{source} is not on this machine; to embed it, {remedy}")
    if source.lower().endswith(_ONLY_FOR_JOBS) and not stat.S_ISFIFO(_mode(source)):
        raise InputError(f"{source} cannot be embedded to one file or stream: {remedy}")
    if stat.S_ISDIR(_mode(source)):
        raise InputError(f"cannot read {source}: it is a folder. To embed its files, {remedy}")


def embed_folder(
    model: str,
    sources: Sequence[str],
    output: str,
    *,
    examples_file: str | None,
    verbose: bool,
    options: dict[str, Any],
) -> None:
    """Run a job, and report on standard error.

    Args:
        model: The model.
        sources: Files, folders, patterns or URIs.
        output: The folder.
        examples_file: Examples for the model; see `read_examples`.
        verbose: Whether to name the engine.
        options: Further options of the command, by their parameters.

    Raises:
        BgeError: If the job fails, or pyarrow is not installed.
    """
    bulk = _import_bulk()
    if not sources:
        raise InputError("no input is named: name files, folders or patterns before --output")
    if "-" in sources:
        raise InputError(
            "standard input is for a file as output: a job reads its input again when it goes on. "
            "Write it to a file first"
        )
    if options["no_dense"] and not (options["sparse"] or options["colbert"]):
        raise InputError("--no-dense leaves nothing to write: pass --sparse or --colbert as well")
    arguments = _arguments(**options)
    if examples_file is not None:
        arguments["model_options"]["examples_for_task"] = read_examples(examples_file)
    with _print_log(verbose=verbose):
        try:
            summary = bulk.embed_dataset(model, list(sources), output, **arguments)
        except (ValueError, ImportError) as error:  # a format may need a package
            raise InputError(str(error)) from error
        except SystemExit:
            _report_stop(bulk, output)
            raise
    for line in describe_summary(summary, of_a_process=options["shard"] is not None):
        click.echo(f"bge-embed: {line}", err=True)


def _arguments(
    *,
    text: tuple[str, ...],
    id_column: str | None,
    no_dense: bool,
    sparse: bool,
    colbert: bool,
    devices: tuple[str, ...],
    engine: str,
    precision: str | None,
    threads: int | None,
    revision: str | None,
    truncate_dim: int | None,
    no_normalize: bool,
    batch_size: int,
    **same: Any,
) -> dict[str, Any]:
    """Return the arguments of `bge_runtime.bulk.embed_dataset`."""
    return {
        "text": text or ("text",),
        "id": id_column,
        "return_dense": not no_dense,
        "return_sparse": sparse,
        "return_colbert_vecs": colbert,
        "batch_size": batch_size,
        "model_options": {
            "devices": list(devices) or None,
            "engine": engine,
            "precision": precision,
            "threads": threads,
            "revision": revision,
            "truncate_dim": truncate_dim,
            "normalize_embeddings": not no_normalize,
            "batch_size": batch_size,
        },
        **same,
    }


def describe_summary(summary: JobSummary, *, of_a_process: bool) -> Iterator[str]:
    """Yield lines that say what a job has done."""
    done = summary.shards - summary.shards_done_before
    ours = " of this process" if of_a_process else ""
    found = f"{_count(summary.rows, 'row')}{ours}: {summary.embedded:,} embedded"
    for count, what in ((summary.empty, "empty"), (summary.rejected, "rejected")):
        found += f", {count:,} {what}" if count else ""
    if summary.truncated:
        found += f"; {_count(summary.truncated, 'text')} cut at the maximum length"
    yield found
    if summary.empty or summary.rejected:
        folder = summary.output.partition("?")[0] if "://" in summary.output else summary.output
        yield f"rows that were left out are listed in {folder.rstrip('/')}/_rejects"
    line = f"{_count(summary.shards, 'shard')}{ours}: {done:,} written"
    if summary.shards_done_before:
        line += f", {summary.shards_done_before:,} already there"
    if done:
        speed = f"{summary.texts_per_s:,.0f} texts/s, {summary.tokens_per_s:,.0f} tokens/s"
        line += f", in {timedelta(seconds=round(summary.seconds))} ({speed})"
    yield line
    if not summary.complete:
        yield "shards of other processes are not there yet"


def _import_bulk() -> ModuleType:
    """Import what needs pyarrow.

    Raises:
        BgeError: If it is not installed.
    """
    try:
        from bge_runtime import bulk
    except ImportError as error:
        raise BgeError(
            f"a folder as output needs packages that are not installed ({error}). "
            "Run `pip install 'bge-runtime[bulk]'`, or name a .npy or .jsonl file"
        ) from error
    return bulk


def _report_stop(bulk: ModuleType, output: str) -> None:
    """Say what a run that was stopped by a signal has left."""
    try:
        counts = bulk.count_shards(output)
    except (BgeError, OSError):
        return
    if counts is not None:
        done, total = counts
        click.echo(
            f"bge-embed: {done:,} of {_count(total, 'shard')} complete; run the same command again "
            "to go on",
            err=True,
        )


@contextmanager
def _print_log(*, verbose: bool) -> Iterator[None]:
    """Print what a job logs: progress without a terminal, and which engine is in force."""

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if verbose or record.name == logger.name:
                click.echo(f"bge-embed: {record.getMessage()}", err=True)

    logger = logging.getLogger("bge_runtime.bulk")
    handler, level = Printer(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _mode(name: str) -> int:
    try:
        return os.stat(name).st_mode
    except OSError:
        return 0
