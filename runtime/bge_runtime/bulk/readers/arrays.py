"""What readers of typed formats share: common types, and rows that do not have them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from bge_runtime.bulk.files import InputError, InputFile, reading
from bge_runtime.bulk.readers.base import BATCH_ROWS, MAX_ROW_BYTES, BadRow, RowBatch

JSON_TEXT = {"bge_runtime": "JSON text"}
"""Metadata of a column of strings that are objects, lists and other values of JSON."""

_FILES_AT_A_TIME = 8
"""Files that are opened in parallel, since each is a round trip if it is remote."""

_LISTED_NAMES = 20

_T = TypeVar("_T")


def is_json_text(field: pa.Field) -> bool:
    """Return whether the strings of a column are values of JSON."""
    return bool(field.metadata) and b"bge_runtime" in field.metadata


def map_files(read: Callable[[InputFile], _T], files: Sequence[InputFile]) -> list[_T]:
    """Return what a function returns for each file; several threads call it."""
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return list(pool.map(read, files))


def list_names(names: Sequence[str], wanted: str) -> str:
    """Return the first names of columns for a message, and the one that may be meant."""
    listed = ", ".join(names[:_LISTED_NAMES])
    if len(names) > _LISTED_NAMES:
        listed += f" and {len(names) - _LISTED_NAMES:,} more"
    near = difflib.get_close_matches(wanted, names, 1)
    return f"{listed}; did you mean {near[0]!r}?" if near else listed


def common_schema(
    files: Sequence[InputFile], schemas: Sequence[pa.Schema], columns: Sequence[str] | None
) -> pa.Schema:
    """Return the columns that all files have, with types that hold the values of all.

    Dictionaries are decoded, since each file has its own.

    Raises:
        InputError: If a file lacks one of ``columns`` or has it twice, or types differ.
    """
    names = [_names(file, schema) for file, schema in zip(files, schemas, strict=True)]
    if columns is None:
        shared = set(names[0]).intersection(*names)
        columns = [name for name in dict.fromkeys(names[0]) if name in shared]
    merged: dict[str, pa.Field] = {}
    for file, schema in zip(files, schemas, strict=True):
        for name in columns:
            field = _plain(require_column(file, schema, name))
            known = merged.setdefault(name, field)
            if known.equals(field):
                continue
            try:
                unified = pa.unify_schemas(
                    [pa.schema([known]), pa.schema([field])], promote_options="permissive"
                )
            except pa.ArrowException as error:
                raise InputError(
                    f"column {name!r} of {file.uri} has type {field.type}, in files before it "
                    f"{known.type}: convert the files to one type"
                ) from error
            merged[name] = unified.field(0)
    return pa.schema([merged[name] for name in columns])


def require_column(file: InputFile, schema: pa.Schema, name: str) -> pa.Field:
    """Return a column of a file.

    Raises:
        InputError: If the file does not have it, or has it twice.
    """
    count = schema.names.count(name)
    if count == 0:
        raise InputError(
            f"{file.uri} has no column {name!r}; its columns are {list_names(schema.names, name)}"
        )
    if count > 1:
        raise InputError(f"{file.uri} has {count} columns {name!r}: rename all but one")
    return schema.field(name)


def _names(file: InputFile, schema: pa.Schema) -> list[str]:
    with reading(file):  # in a damaged file, names may not be UTF-8
        return list(schema.names)


def _plain(field: pa.Field) -> pa.Field:
    """Return a field without a dictionary, and without metadata, which differs between files."""
    kind = field.type
    while isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    return pa.field(field.name, _WITHOUT_VIEWS.get(kind, kind))


_WITHOUT_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def to_batches(batch: pa.RecordBatch, schema: pa.Schema, first: int) -> Iterator[RowBatch]:
    """Yield the rows of a record batch with the columns and types of a schema.

    A value that the type cannot hold, text that is not UTF-8 and a row that is too large make the
    row a bad one.

    Args:
        batch: The rows, with the columns of the schema and maybe others.
        schema: The columns.
        first: Number of the first row.
    """
    for start in range(0, batch.num_rows, BATCH_ROWS):
        part = batch.slice(start, BATCH_ROWS).select(schema.names)
        yield _convert(part, schema, first + start)


def _convert(batch: pa.RecordBatch, schema: pa.Schema, first: int) -> RowBatch:
    numbers = np.arange(first, first + batch.num_rows)
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            return RowBatch(numbers, _cast(batch, schema))
        except pa.ArrowException:
            pass  # row by row below
    good: list[pa.RecordBatch] = []
    bad: dict[int, str] = {}
    for row in range(batch.num_rows):
        one = batch.slice(row, 1)
        if one.nbytes > MAX_ROW_BYTES:
            bad[row] = too_large(one.nbytes)
            continue
        try:
            good.append(_cast(one, schema))
        except pa.ArrowException:
            bad[row] = _problem(one, schema)
    rows = pa.Table.from_batches(good, schema).combine_chunks().to_batches()
    empty = pa.RecordBatch.from_pylist([], schema)
    return RowBatch(
        np.delete(numbers, [*bad]),
        rows[0] if rows else empty,
        [BadRow(first + row, reason) for row, reason in bad.items()],
    )


def too_large(size_bytes: int) -> str:
    """Return the reason why a row of that size is bad."""
    return (
        f"is too large: it has {size_bytes:,} bytes, more than the {MAX_ROW_BYTES:,} that a row "
        "may have"
    )


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    result = pa.RecordBatch.from_arrays(columns, schema=schema)
    result.validate(full=True)  # files can hold text that is not UTF-8
    return result


def _problem(row: pa.RecordBatch, schema: pa.Schema) -> str:
    for column, field in zip(row.columns, schema, strict=True):
        try:
            _cast(pa.RecordBatch.from_arrays([column], [field.name]), pa.schema([field]))
        except pa.ArrowException as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            if "UTF8" in reason or "UTF-8" in reason:
                return f"is not UTF-8 in its column {field.name!r}"
            return f"does not fit into type {field.type} of column {field.name!r}: {reason}"
    raise AssertionError("unreachable")
