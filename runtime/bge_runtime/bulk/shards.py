"""Compute the shards of a job: files that are complete once their record is there."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bge_runtime.bulk.chunks import split_texts
from bge_runtime.bulk.files import InputError
from bge_runtime.bulk.job import Job, check_still_same, read_rows
from bge_runtime.bulk.options import JobOptions
from bge_runtime.bulk.output import MANIFEST, REJECTS, FileRecord, OutputError, OutputFolder
from bge_runtime.bulk.plan import Plan
from bge_runtime.bulk.readers import Reader
from bge_runtime.bulk.rows import (
    COLBERT_CHARACTERS,
    WINDOW_CHARACTERS,
    Reject,
    Window,
    WindowReader,
)
from bge_runtime.bulk.vectors import Pipeline, PreparedWindow, TextEncoder
from bge_runtime.bulk.writers import ShardWriter, open_format
from bge_runtime.system import BackgroundTask

_COUNTS = ("rows", "embedded", "empty", "rejected", "truncated", "tokens")

_READING_THREADS = 16
"""Records that are read at the same time: on an object store, each takes tens of milliseconds."""

_SHARDS_AT_ONCE = 2
"""Shards that are synced or uploaded at the same time: with a fast GPU and an object store, one
upload after the other would hold the computation back."""


class Advance(NamedTuple):
    """What was done since the last call.

    Attributes:
        rows: Rows of the input.
        texts: Texts that were embedded.
        tokens: Their tokens.
    """

    rows: int
    texts: int
    tokens: int


OnAdvance = Callable[[Advance], object]


def record_name(name: str) -> str:
    """Return the file with the record of a shard."""
    return f"{MANIFEST}/{name}.json"


def read_records(
    folder: OutputFolder, job: Job, shards: Iterable[int]
) -> dict[int, dict[str, Any]]:
    """Return the records of complete shards, once their files are known to be unchanged.

    Args:
        folder: The folder of the job.
        job: The job.
        shards: The shards of interest; others are left to those who compute them.

    Raises:
        OutputError: If a file was changed.
    """
    recorded = sorted(recorded_shards(folder, job.plan).intersection(shards))

    def read(shard: int) -> dict[str, Any] | None:
        return _read_record(folder, job, job.plan.name(shard))

    with ThreadPoolExecutor(_READING_THREADS, thread_name_prefix="bge-records") as threads:
        try:
            pairs = list(zip(recorded, threads.map(read, recorded), strict=True))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return {shard: record for shard, record in pairs if record is not None}


def recorded_shards(folder: OutputFolder, plan: Plan) -> set[int]:
    """Return the shards that have a record."""
    present = set(folder.list(MANIFEST))
    return {shard for shard in range(plan.shards) if f"{plan.name(shard)}.json" in present}


def _read_record(folder: OutputFolder, job: Job, name: str) -> dict[str, Any] | None:
    """Return the record of a complete shard; None if one of its files was deleted."""
    record: dict[str, Any] = folder.read_json(record_name(name))
    if record.get("job") != job.identity:
        raise OutputError(
            f"{folder.uri_of(name)} belongs to another job, of another input, model or options: "
            f"its record in {folder.uri_of(record_name(name))} says so. Delete that record, and "
            "the shard is written again"
        )
    files = record["files"]
    if not all(map(folder.exists, files)):
        return None
    found = {file: folder.check_unchanged(file, written) for file, written in files.items()}
    if found != files:  # copied: the next run need not read them again
        record = {**record, "files": found}
        folder.write_json(record_name(name), record)
    return record


def check_left_out(
    records: Mapping[int, Mapping[str, Any]], options: JobOptions, *, where: str
) -> None:
    """Check that complete shards lack no rows at which the job would stop now.

    Raises:
        InputError: If they do.
    """
    counts = add_up(records.values())
    for name, option, value in (
        ("rejected", "on_error", options.on_error),
        ("empty", "on_empty", options.on_empty),
    ):
        if value == "stop" and counts[name]:
            raise InputError(
                f"{counts[name]:,} {name} rows were left out of the shards in {where}, which has a "
                f"list of them in {REJECTS}. Pass {option}='skip', or name a new folder"
            )


def add_up(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the sums of what records count."""
    found = list(records)
    return {name: sum(record[name] for record in found) for name in _COUNTS}


def run_shards(
    job: Job,
    shards: Sequence[int],
    encoder: TextEncoder,
    folder: OutputFolder,
    *,
    reader: Reader,
    on_advance: OnAdvance,
) -> dict[int, dict[str, Any]]:
    """Compute shards, one after the other without a pause in between.

    Args:
        job: The job.
        shards: Numbers of the shards.
        encoder: Computes the vectors.
        folder: Where they are written.
        reader: Reads the input; it continues where the last call ended, so that a compressed file
            is decompressed once.
        on_advance: Receives progress, from another thread.

    Returns:
        Their records.

    Raises:
        InputError: If the input cannot be read, or a row is bad and the job stops there.
        OutputError: If a shard cannot be written.
        BgeError: If an engine fails.
    """
    sink = ShardSink(job, folder, on_advance)
    windows = _read_windows(job, shards, encoder, reader)
    try:
        Pipeline(windows, encoder, sink.write, finish=sink.finish, on_stop=folder.stop).run()
    finally:
        sink.discard()
    return sink.records


def _read_windows(
    job: Job, shards: Sequence[int], encoder: TextEncoder, reader: Reader
) -> Generator[Window]:
    options, plan = job.options, job.plan
    split = None
    if options.chunk_tokens is not None:
        split = partial(
            split_texts,
            encoder.model.tokenizer,
            chunk_tokens=options.chunk_tokens - encoder.instruction_tokens,
            overlap=options.overlap,
        )
    windows = WindowReader(
        options.columns,
        job.row_fields,
        on_empty=options.on_empty,
        window_characters=COLBERT_CHARACTERS if options.return_colbert_vecs else WINDOW_CHARACTERS,
        split=split,
    )
    for shard in shards:
        start = shard * options.rows_per_shard
        yield from windows.read(
            shard, read_rows(job, shard, reader), start=start, end=start + plan.rows_of(shard)
        )


@dataclass
class _OpenShard:
    """A shard that is being written."""

    name: str
    paths: list[Path]
    writer: ShardWriter
    rejects: list[Reject] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))


class ShardSink:
    """Writes windows to shards, and completes a shard with its last window.

    A shard is synced, or uploaded, while the next one is computed.

    Attributes:
        records: The records of complete shards, by number.
    """

    def __init__(self, job: Job, folder: OutputFolder, on_advance: OnAdvance) -> None:
        """Start without a shard."""
        self.records: dict[int, dict[str, Any]] = {}
        self._job, self._folder, self._on_advance = job, folder, on_advance
        self._plan, self._schema = job.plan, job.schema
        self._format = open_format(job.options.output_format)
        self._open: _OpenShard | None = None
        self._completing: deque[BackgroundTask[None]] = deque()
        self._failed = False

    def write(self, prepared: PreparedWindow) -> None:
        """Write the next window.

        Raises:
            InputError: If it has a bad row, and the job stops there.
            OutputError: If it cannot be written, or the shard before.
        """
        if self._failed:
            self.finish()
        window = prepared.window
        shard = self._open or self._start(window.shard)
        rejects = prepared.rejects()
        self._check(rejects)
        table = prepared.table()
        texts = 0 if table is None else len(table)
        if table is not None:
            try:
                shard.writer.write(table.cast(self._schema))
            except OSError as error:
                raise self._folder.draft_failure(error) from error
        shard.rejects += rejects
        empty = sum(reject.empty for reject in rejects)
        counts = (
            window.rows_read, texts, empty, len(rejects) - empty, prepared.truncated,
            prepared.tokens,
        )  # fmt: skip
        for name, count in zip(_COUNTS, counts, strict=True):
            shard.counts[name] += count
        if window.last:
            self.finish(besides=_SHARDS_AT_ONCE - 1)
            complete = partial(self._complete, window.shard, shard)
            self._completing.append(BackgroundTask(complete, name="bge-commit"))
            self._open = None
            self._completing[-1].start()
        self._on_advance(Advance(window.rows_read, texts, prepared.tokens))

    def finish(self, *, besides: int = 0) -> None:
        """Wait until shards are complete.

        Args:
            besides: The number of the last shards that need not be.

        Raises:
            OutputError: If one cannot be written.
        """
        while len(self._completing) > besides:
            # Not `wait` first: a task that has not begun by then never would.
            task = self._completing[0]
            try:
                task.result()
            finally:
                task.wait()
                self._completing.popleft()

    def discard(self) -> None:
        """Delete what there is of shards that are not complete, so that the disk has its space."""
        for task in self._completing:
            task.wait()
        if self._open is not None:
            self._open.writer.abort()
            self._folder.discard(self._open.paths)
            self._open = None

    def _start(self, number: int) -> _OpenShard:
        name = self._plan.name(number)
        paths = [self._folder.draft(f"{name}{suffix}") for suffix in self._format.suffixes]
        try:
            writer = self._format.open(paths, self._schema)
        except OSError as error:
            self._folder.discard(paths)
            raise self._folder.draft_failure(error) from error
        self._open = _OpenShard(name, paths, writer)
        return self._open

    def _check(self, rejects: Sequence[Reject]) -> None:
        options = self._job.options
        for reject in rejects:
            stops = options.on_empty if reject.empty else options.on_error
            if stops == "stop":
                file, row = self._plan.locate(reject.row)
                option, advice = (
                    ("on_empty='skip'", "leave such rows out")
                    if reject.empty
                    else ("on_error='skip'", "leave it out, and list it in the rejects file")
                )
                raise InputError(
                    f"row {row} (from 0) of {self._job.input.entries[file].file.uri} "
                    f"{reject.reason}. Pass {option} to {advice}"
                )

    def _complete(self, number: int, shard: _OpenShard) -> None:
        try:
            check_still_same(self._job, number)
            self.records[number] = self._commit(shard)
        except BaseException:
            self._failed = True
            shard.writer.abort()
            self._folder.discard(shard.paths)
            raise

    def _commit(self, shard: _OpenShard) -> dict[str, Any]:
        try:
            shard.writer.close()
        except OSError as error:
            raise self._folder.draft_failure(error) from error
        files = {}
        for path, suffix in zip(shard.paths, self._format.suffixes, strict=True):
            files[f"{shard.name}{suffix}"] = self._folder.commit(path, f"{shard.name}{suffix}")
        if shard.rejects:
            files |= self._write_rejects(shard)
        record = {"job": self._job.identity, **shard.counts, "files": files}
        self._folder.write_json(record_name(shard.name), record)
        return record

    def _write_rejects(self, shard: _OpenShard) -> dict[str, FileRecord]:
        draft = self._folder.draft(f"{shard.name}.rejects")
        try:
            with draft.open("w", encoding="utf-8") as file:
                for reject in shard.rejects:
                    number, row = self._plan.locate(reject.row)
                    document = {
                        "file": self._job.input.entries[number].file.uri,
                        "row": row,
                        "id": reject.row if self._job.options.columns.id is None else reject.id,
                        "reason": reject.reason,
                    }
                    file.write(json.dumps(document, default=str) + "\n")
        except OSError as error:
            self._folder.discard([draft])
            raise self._folder.draft_failure(error) from error
        name = f"{REJECTS}/{shard.name}.jsonl"
        return {name: self._folder.commit(draft, name)}
