"""The description of a job, in its output folder: what is computed, from what.

Everything that decides about the bytes of a shard is in it. A rerun compares it with what is asked
for, and refuses a mix.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from bge_runtime.bulk.files import InputError, InputFile, input_file
from bge_runtime.bulk.inputs import Input
from bge_runtime.bulk.options import JobOptions
from bge_runtime.bulk.output import MANIFEST, OutputError, OutputFolder
from bge_runtime.bulk.plan import Plan
from bge_runtime.bulk.readers import Reader
from bge_runtime.bulk.rows import row_fields
from bge_runtime.bulk.vectors import ModelDescription
from bge_runtime.system import warn_user

FORMAT = "bge-runtime job"
FORMAT_VERSION = 1
JOB_FILE = f"{MANIFEST}/job.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job: everything that its shards depend on.

    Attributes:
        input: The input.
        options: What is computed and written.
        model: The model.
    """

    input: Input
    options: JobOptions
    model: ModelDescription

    @cached_property
    def identity(self) -> str:
        """A hash of all that shards depend on: input, options and model, wherever they are."""
        document = self.to_json()
        content = {name: document[name] for name in ("model", "encode", "options", "input_schema")}
        content["input"] = [
            (entry.file.size_bytes, entry.content, entry.index.rows) for entry in self.input.entries
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def plan(self) -> Plan:
        """Which rows are in which shard."""
        rows = [entry.index.rows for entry in self.input.entries]
        return Plan(rows, self.options.rows_per_shard)

    @property
    def row_fields(self) -> list[pa.Field]:
        """The columns of the output that come before the vectors."""
        chunks = self.options.chunk_tokens is not None
        return row_fields(self.input.schema, self.options.columns, chunks=chunks)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the output; the metadata describes the model."""
        document = {**self.model.document, **asdict(self.model.encode)}
        metadata = {"bge_runtime": json.dumps(document, ensure_ascii=False, sort_keys=True)}
        return pa.schema([*self.row_fields, *self.model.fields], metadata=metadata)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``job.json``."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": dict(self.model.document),
            "made_with": dict(self.model.made_with),
            "encode": _plain(asdict(self.model.encode)),
            "options": _compared_options(self.options),
            "shards": self.plan.shards,
            "rows": self.plan.rows,
            "columns": {each.name: str(each.type) for each in self.schema},
            "input_format": self.input.format,
            "input_schema": base64.b64encode(self.input.schema.serialize()).decode(),
            "input": [entry.to_json() for entry in self.input.entries],
        }


def read_document(folder: OutputFolder) -> dict[str, Any] | None:
    """Return the description in a folder; None if there is none.

    Raises:
        OutputError: If it cannot be read, or is of a newer version.
    """
    if not folder.exists(JOB_FILE):
        return None
    document = folder.read_json(JOB_FILE)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise OutputError(f"{folder.uri}/{JOB_FILE} does not describe a job; name a new folder")
    if document.get("format_version") != FORMAT_VERSION:
        raise OutputError(
            f"the job in {folder.uri} has format version {document.get('format_version')}, and "
            f"this bge-runtime reads {FORMAT_VERSION}; use the same version, or name a new folder"
        )
    return document


def check_same_options(document: Mapping[str, Any], options: JobOptions, *, where: str) -> None:
    """Check that a job was started with the same options.

    Raises:
        OutputError: If it was not; all differences are named.
    """
    _refuse_differences(document["options"], _compared_options(options), where=where)


def check_same_model(document: Mapping[str, Any], model: ModelDescription, *, where: str) -> None:
    """Check that a job was started with the same model.

    Raises:
        OutputError: If it was not; all differences are named.
    """
    _refuse_differences(document["model"], dict(model.document), where=where, prefix="model ")
    _refuse_differences(document["encode"], _plain(asdict(model.encode)), where=where)


def warn_other_versions(
    document: Mapping[str, Any], model: ModelDescription, *, where: str
) -> None:
    """Warn if a job was started with other versions, or on another kind of processor."""
    stored = document.get("made_with", {})
    found = [
        f"{name} {_shown(stored.get(name))}, and now {_shown(value)}"
        for name, value in model.made_with.items()
        if stored.get(name) != value
    ]
    if found:
        warn_user(
            f"the job in {where} was started with {'; '.join(found)}: its shards may differ in the "
            "last bits of their numbers"
        )


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def check_still_same(job: Job, shard: int) -> None:
    """Check that the files of a shard are as they were when the job was started or continued.

    Raises:
        InputError: If one was changed, which may have been while it was read.
    """
    for segment in job.plan.segments(shard):
        file = job.input.entries[segment.file].file
        try:
            info = file.filesystem.get_file_info(file.path)
        except OSError as error:
            raise InputError(f"cannot read {file.uri}: {error}") from error
        known = file.modified_ns is not None and info.mtime_ns is not None
        if info.size != file.size_bytes or (known and info.mtime_ns != file.modified_ns):
            raise InputError(
                f"{file.uri} was changed while it was read. Restore it, and run the same command "
                "again; or name a new folder"
            )


def at_this_machine(job: Job) -> Job:
    """Return a job that reads this machine's copies of local files, whose times may differ."""

    def here(file: InputFile) -> InputFile:
        if file.local is None:
            return file
        modified_ns = file.filesystem.get_file_info(file.path).mtime_ns
        return input_file(file.uri, file.size_bytes, modified_ns)

    entries = [replace(entry, file=here(entry.file)) for entry in job.input.entries]
    return replace(job, input=replace(job.input, entries=entries))


def read_rows(job: Job, shard: int, reader: Reader) -> Iterator[tuple[int, Iterator[Any]]]:
    """Yield the parts of files that make a shard: where a file begins, and its rows."""
    for segment in job.plan.segments(shard):
        entry = job.input.entries[segment.file]
        rows = reader.read(
            entry.file,
            entry.index,
            job.input.schema,
            first=segment.first,
            count=segment.count,
        )
        yield segment.start - segment.first, rows


def _compared_options(options: JobOptions) -> dict[str, Any]:
    """Return the options that decide about the content of shards.

    After a job stopped at a bad row, it may go on without such rows: shards that were complete have
    none. What depends on the model is compared with the model.
    """
    document = asdict(replace(options, on_empty=options.on_empty.replace("stop", "skip")))
    for name in (
        "input_format", "on_error", "max_length", "batch_size", "query", "dtype", "colbert_dtype",
    ):  # fmt: skip
        del document[name]
    return _plain({**document.pop("columns"), **document})


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as it is after it was written and read."""
    return {
        key: list(value)
        if isinstance(value, tuple)
        else _plain(value)
        if isinstance(value, dict)
        else value
        for key, value in document.items()
    }


def _refuse_differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], *, where: str, prefix: str = ""
) -> None:
    found = [
        f"{prefix}{name}={stored.get(name)!r}, and now {name}={asked.get(name)!r}"
        for name in {**stored, **asked}
        if stored.get(name) != asked.get(name)
    ]
    if found:
        raise OutputError(
            f"the job in {where} was started with {'; '.join(found)}. Ask for the same, or name a "
            "new folder"
        )
