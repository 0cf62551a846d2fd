"""JSONL shards: one object a row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bge_runtime.bulk.writers.row_sizes import row_sizes

_PART_BYTES = 4 << 20
"""Arrow data that becomes text at once, which has about four times its size."""

_VECTORS = ("dense", "sparse", "colbert")


class JsonlFormat:
    """JSON objects with id, kept columns, ``dense``, ``sparse`` and ``colbert``.

    Numbers of vectors are the shortest decimals that read back as the same float32. NaN and
    infinity in kept columns become null, dates and times strings of ISO 8601 with at most
    microseconds, decimals strings.
    """

    suffixes: Sequence[str] = (".jsonl",)
    result: str | None = None
    package: tuple[str, str] | None = ("orjson", "orjson")

    def check(self, schema: pa.Schema) -> None:
        """Check whether JSON has the types of the columns.

        Raises:
            ValueError: If it does not.
        """
        for field in schema:
            if not _has_json(field.type):
                raise ValueError(
                    f"the column {field.name!r} has the type {field.type}, which JSON cannot hold; "
                    "leave it out of `keep`, or use output_format='parquet'"
                )

    def open(self, paths: Sequence[Path], schema: pa.Schema) -> JsonlShard:  # noqa: ARG002
        """Open a shard for writing."""
        (path,) = paths
        return JsonlShard(path)

    def finish(self, folder: str, shards: Mapping[str, str]) -> None:
        """Do nothing: the shards are the result."""


class JsonlShard:
    """Writes lines of JSON."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, rows: pa.Table) -> None:
        """Write a line for each row."""
        parts = np.cumsum(row_sizes(rows)) // _PART_BYTES
        starts = np.flatnonzero(np.diff(parts, prepend=-1)).tolist()
        for start, stop in pairwise([*starts, rows.num_rows]):
            self._file.write(_lines(rows.slice(start, stop - start)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def abort(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):
            self._file.close()


def _lines(rows: pa.Table) -> bytes:
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    columns = [_values(name, rows[name].combine_chunks()) for name in rows.column_names]
    objects = (dict(zip(rows.column_names, row, strict=True)) for row in zip(*columns, strict=True))
    return b"".join(orjson.dumps(each, default=str, option=options) for each in objects)


def _values(name: str, column: pa.Array) -> Iterator[Any]:
    """Yield the values of a column, vectors as arrays of NumPy."""
    if name not in _VECTORS:
        try:
            yield from _without_nanoseconds(column).to_pylist()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the column {name!r} holds invalid UTF-8, which JSON cannot hold: {error}. Leave "
                "it out of `keep`, or use output_format='parquet'"
            ) from error
    elif pa.types.is_struct(column.type):
        indices, values = (list(_vectors(child)) for child in column.flatten())
        for row in zip(indices, values, strict=True):
            yield dict(zip(("indices", "values"), row, strict=True))
    else:
        yield from _vectors(column)


def _vectors(column: pa.Array) -> Iterator[Any]:
    """Yield the rows of lists of numbers, or of lists of such lists, as arrays of NumPy."""
    if pa.types.is_fixed_size_list(column.type):
        yield from _numbers(column).reshape(-1, column.type.list_size)
        return
    offsets = column.offsets.to_numpy()
    numbers = _numbers(column)
    if pa.types.is_fixed_size_list(column.type.value_type):
        numbers = numbers.reshape(-1, column.type.value_type.list_size)
    for start, stop in zip(offsets[:-1] - offsets[0], offsets[1:] - offsets[0], strict=True):
        yield numbers[start:stop]


def _numbers(column: pa.Array) -> Any:
    """Return the numbers in lists; float16 as float32, of the same value."""
    while not pa.types.is_primitive(column.type):
        column = column.flatten()
    numbers = column.to_numpy()
    return numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers


def _without_nanoseconds(column: pa.Array) -> pa.Array:
    """Return a column of times in microseconds, which Python's have; others as they are."""
    kind = column.type
    if not _has_nanoseconds(kind):
        return column
    to = pa.time64("us") if pa.types.is_time(kind) else pa.timestamp("us", kind.tz)
    return column.cast(to, safe=False)


def _has_nanoseconds(kind: pa.DataType) -> bool:
    return (pa.types.is_timestamp(kind) or pa.types.is_time(kind)) and bool(kind.unit == "ns")


def _has_json(kind: pa.DataType, *, nested: bool = False) -> bool:
    if pa.types.is_struct(kind):
        return all(_has_json(child.type, nested=True) for child in kind)
    if hasattr(kind, "value_type"):  # a list, or a dictionary
        return _has_json(kind.value_type, nested=True)
    if nested and _has_nanoseconds(kind):
        return False
    return not any(
        test(kind)
        for test in (
            pa.types.is_binary,
            pa.types.is_large_binary,
            pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
            pa.types.is_duration,
            pa.types.is_map,
            pa.types.is_union,
        )
    )
