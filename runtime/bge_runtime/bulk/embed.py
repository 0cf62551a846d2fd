"""``embed_dataset``: embed files of any size into a folder of shards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Unpack

from bge_runtime.bulk.files import InputFile, find_inputs, format_of, open_location
from bge_runtime.bulk.inputs import (
    Input,
    check_same_input,
    index_inputs,
    input_from_document,
    read_schema,
)
from bge_runtime.bulk.job import (
    JOB_FILE,
    Job,
    check_same_model,
    check_same_options,
    read_document,
    warn_other_versions,
)
from bge_runtime.bulk.options import JobArguments, JobOptions
from bge_runtime.bulk.output import MANIFEST, OutputError, OutputFolder
from bge_runtime.bulk.plan import Plan, shards_of_process
from bge_runtime.bulk.progress import Progress
from bge_runtime.bulk.readers import Reader, open_reader
from bge_runtime.bulk.shards import (
    Advance,
    OnAdvance,
    add_up,
    check_left_out,
    read_records,
    recorded_shards,
    run_shards,
)
from bge_runtime.bulk.vectors import ModelDescription, describe_model, open_encoder
from bge_runtime.bulk.writers import Format, open_format
from bge_runtime.models import AnyFlagModel
from bge_runtime.system import hold_file_lock

Paths = str | Path | Sequence[str | Path]
"""A file, folder, glob or URI, or several."""


@dataclass(frozen=True, kw_only=True)
class JobSummary:
    """What a job has done, in this run and in earlier ones.

    Attributes:
        output: The output folder.
        rows: Rows of the input in the complete shards of this process.
        embedded: Rows that were written: texts, or chunks of texts.
        empty: Rows without text, which were left out.
        rejected: Other rows that were left out.
        truncated: Texts that were cut at ``max_length``.
        tokens: Tokens that were computed.
        shards: Shards of this process.
        shards_done_before: Those that an earlier run has written.
        complete: Whether the shards of all processes are there.
        seconds: Time of this run.
        texts_per_s: Texts, or chunks of texts, that this run has embedded in a second; 0 if nothing
            was missing.
        tokens_per_s: Tokens in a second, the same.
    """

    output: str
    rows: int
    embedded: int
    empty: int
    rejected: int
    truncated: int
    tokens: int
    shards: int
    shards_done_before: int
    complete: bool
    seconds: float
    texts_per_s: float
    tokens_per_s: float


class ShardEngine(Protocol):
    """Something that computes shards: this process, or a cluster."""

    def describe(self) -> ModelDescription:
        """Return the model, as it runs where shards are computed."""
        ...

    def run(
        self, job: Job, shards: Sequence[int], folder: OutputFolder, on_advance: OnAdvance
    ) -> dict[int, dict[str, Any]]:
        """Compute shards, and return their records."""
        ...


class LocalEngine:
    """Computes shards in this process.

    Attributes:
        encoder: The model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | AnyFlagModel,
        options: JobOptions,
        *,
        instruction: str | None,
        model_options: Mapping[str, Any],
    ) -> None:
        """Open a model; see `bge_runtime.bulk.vectors.open_encoder`."""
        self.encoder = open_encoder(
            model, options, instruction=instruction, model_options=model_options
        )
        self._reader: Reader | None = None

    def describe(self) -> ModelDescription:
        """Return the model."""
        return describe_model(self.encoder)

    def run(
        self, job: Job, shards: Sequence[int], folder: OutputFolder, on_advance: OnAdvance
    ) -> dict[int, dict[str, Any]]:
        """Compute shards, and return their records."""
        if self._reader is None:
            self._reader = open_reader(job.input.format)
        return run_shards(
            job, shards, self.encoder, folder, reader=self._reader, on_advance=on_advance
        )


def embed_dataset(
    model: str | os.PathLike[str] | AnyFlagModel,
    inputs: Paths,
    output: str | Path,
    *,
    instruction: str | None = None,
    shard: str | None = None,
    engine: str = "local",
    model_options: Mapping[str, Any] | None = None,
    ray_options: Mapping[str, Any] | None = None,
    show_progress: bool | None = None,
    **arguments: Unpack[JobArguments],
) -> JobSummary:
    """Embed the rows of files into a folder of shards, and go on where an earlier run ended.

    Each shard has the same bytes whatever the number of threads or processes, and wherever an
    earlier run was stopped, on processors with the same instructions.

    Args:
        model: A name or folder as in `bge_runtime.FlagModel`, or an opened model.
        inputs: Files, folders, globs or URIs, of one format; see docs/guides/bulk.
        output: A folder or URI. It is created, or holds the same job.
        instruction: Instruction for queries; None for the one that the model's authors recommend,
            ``""`` for none.
        shard: ``"i/n"`` computes each n-th shard, from the i-th on, for n processes that share a
            job. i counts from 1.
        engine: ``local``, or ``ray`` for a cluster; see docs/guides/ray.md.
        model_options: Arguments of `bge_runtime.FlagAutoModel.from_finetuned`, such as
            ``devices``, ``precision`` and ``threads``.
        ray_options: With ``engine="ray"``: ``concurrency``, ``num_cpus`` and ``num_gpus`` of the
            actors.
        show_progress: None shows a progress bar on a terminal, and elsewhere logs a line a minute.
        **arguments: What is computed and written; see `JobArguments`.

    Returns:
        What was done.

    Raises:
        InputError: If the input cannot be read, has changed, or has a bad row.
        OutputError: If the output cannot be written, or is that of another job.
        ValueError: If an argument is wrong.
        BgeError: If the model cannot be opened or run.
    """
    started_s = time.monotonic()
    options = JobOptions.from_arguments(arguments)
    shards_of_process(1, shard)  # an error before anything is opened
    if engine not in ("local", "ray"):
        raise ValueError(f"engine must be 'local' or 'ray', but is {engine!r}")

    def open_engine() -> ShardEngine:
        given = dict(model_options or {})
        if engine == "local":
            return LocalEngine(model, options, instruction=instruction, model_options=given)
        from bge_runtime.bulk.cluster import RayEngine

        return RayEngine(
            model,
            options,
            instruction=instruction,
            model_options=given,
            ray_options=dict(ray_options or {}),
        )

    with closing(OutputFolder(open_location(output))) as folder:
        files = find_inputs(inputs, input_format=options.input_format, without=folder.holds)
        return _run(
            files,
            options,
            folder,
            open_engine,
            process=shard,
            show_progress=show_progress,
            started_s=started_s,
        )


def _run(
    files: Sequence[InputFile],
    options: JobOptions,
    folder: OutputFolder,
    open_engine: Callable[[], ShardEngine],
    *,
    process: str | None,
    show_progress: bool | None,
    started_s: float,
) -> JobSummary:
    output_format = open_format(options.output_format)
    if output_format.result is not None and folder.local is None:
        raise ValueError(
            f"output_format={options.output_format!r} writes local folders, and {folder.uri} is "
            "none; name one, or write parquet"
        )
    folder.check_ours()
    found_format = options.input_format or format_of(files)
    document = read_document(folder)

    def check(document: dict[str, Any]) -> None:
        check_same_options(document, options, where=folder.uri)
        check_same_input(
            document, files, found_format, where=folder.uri, show_progress=show_progress
        )

    # What takes no time comes first. Then the model is opened, and the input is read last: both
    # may take minutes.
    if document is not None:
        check(document)
        found = input_from_document(document, files)
    else:
        schema = read_schema(files, found_format, options.columns, added=_added(options))
        found = Input(format=found_format, entries=(), schema=schema)
    folder.create()
    with folder.lock(process or "1/1"):
        engine = open_engine()
        job = Job(input=found, options=options, model=engine.describe())
        output_format.check(job.schema)
        if document is None:
            found = index_inputs(files, found_format, found.schema, show_progress=show_progress)
            job = replace(job, input=found)
            folder.create_json(JOB_FILE, job.to_json())
            document = read_document(folder)  # perhaps another process was first
            assert document is not None
            check(document)
        check_same_model(document, job.model, where=folder.uri)
        warn_other_versions(document, job.model, where=folder.uri)
        ours = shards_of_process(job.plan.shards, process)
        records = read_records(folder, job, ours)
        check_left_out(records, options, where=folder.uri)
        missing = [shard for shard in ours if shard not in records]
        done_before = len(ours) - len(missing)
        folder.clear_temporary([job.plan.name(shard) for shard in missing])
        before = sum(map(job.plan.rows_of, records))
        total = sum(map(job.plan.rows_of, ours))
        computing_s = time.monotonic()
        if missing:
            with Progress(total, initial=before, show=show_progress) as progress:
                records |= engine.run(job, missing, folder, partial(_advance, progress))
        computing_s = time.monotonic() - computing_s
        computed = add_up(records[shard] for shard in missing)
        others = _records_of_others(folder, job, ours)
        if others is not None:
            folder.clear_temporary()
            if output_format.result is not None:
                _finish(output_format, folder, job, {**records, **others})
        return JobSummary(
            output=folder.uri,
            **add_up(records[shard] for shard in ours),
            shards=len(ours),
            shards_done_before=done_before,
            complete=others is not None,
            seconds=time.monotonic() - started_s,
            texts_per_s=computed["embedded"] / computing_s,
            tokens_per_s=computed["tokens"] / computing_s,
        )


def _advance(progress: Progress, done: Advance) -> None:
    progress.update(rows=done.rows, texts=done.texts, tokens=done.tokens)


def _records_of_others(
    folder: OutputFolder, job: Job, ours: Sequence[int]
) -> dict[int, dict[str, Any]] | None:
    """Return the records of other processes' shards; None while they are not all there."""
    missing = job.plan.shards - len(ours)
    others = recorded_shards(folder, job.plan).difference(ours)
    if len(others) < missing:
        return None
    records = read_records(folder, job, others)
    return records if len(records) == missing else None


def count_shards(output: str | Path) -> tuple[int, int] | None:
    """Return how many shards of a job are complete, and how many it has.

    Args:
        output: The folder of the job.

    Returns:
        None if no job was started there.

    Raises:
        OutputError: If the folder cannot be read.
    """
    with closing(OutputFolder(open_location(output))) as folder:
        document = read_document(folder)
        if document is None:
            return None
        rows = [stored["rows"] for stored in document["input"]]
        plan = Plan(rows, document["options"]["rows_per_shard"])
        return len(recorded_shards(folder, plan)), plan.shards


def _finish(
    output_format: Format,
    folder: OutputFolder,
    job: Job,
    records: Mapping[int, Mapping[str, Any]],
) -> None:
    """Make one result of all shards; where several processes see them complete, one after another.

    Raises:
        OutputError: If it cannot be written.
    """
    assert folder.local is not None
    suffix = output_format.suffixes[0]
    main = {f"{job.plan.name(shard)}{suffix}": shard for shard in sorted(records)}
    hashes = {name: records[shard]["files"][name]["sha256"] for name, shard in main.items()}
    lock = folder.local / MANIFEST / "result.lock"
    with hold_file_lock(lock, waiting=f"waiting for another process that writes to {folder.uri}"):
        try:
            output_format.finish(str(folder.local), hashes)
        except OSError as error:
            raise OutputError(str(error)) from error


def _added(options: JobOptions) -> list[str]:
    """Return the columns that the output adds to those that are kept."""
    chunks = ["chunk", "start", "end"] if options.chunk_tokens is not None else []
    return ["id", *chunks, *options.outputs]
