"""Parquet shards: vectors plain, so that reading is copying, all else compressed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bge_runtime.bulk.writers.row_sizes import row_sizes

_GROUP_BYTES = 32 << 20
"""Most Arrow data in a row group, unless one row has more. A reader holds a group a thread, and
the writer holds one, twice while it is encoded."""


class ParquetFormat:
    """Parquet files, as pyarrow, DuckDB, Spark and others read them."""

    suffixes: Sequence[str] = (".parquet",)
    result: str | None = None
    package: tuple[str, str] | None = None

    def check(self, schema: pa.Schema) -> None:
        """Check whether Parquet has the types of the columns.

        Raises:
            ValueError: If it does not.
        """
        for field in schema:
            try:
                _leaves(pa.schema([field]))
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(
                    f"the column {field.name!r} has the type {field.type}, which Parquet cannot "
                    f"hold: {error}. Leave it out of `keep`"
                ) from error

    def open(self, paths: Sequence[Path], schema: pa.Schema) -> ParquetShard:
        """Open a shard for writing."""
        (path,) = paths
        return ParquetShard(path, schema)

    def finish(self, folder: str, shards: Mapping[str, str]) -> None:
        """Do nothing: the shards are the result."""


class ParquetShard:
    """Writes a Parquet file, a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Create the file."""
        layout = _layout(schema)
        self._file = pa.OSFile(str(path), "wb")
        try:
            self._writer = pq.ParquetWriter(self._file, schema, **layout)
        except BaseException:
            self._file.close()
            raise
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0

    def write(self, rows: pa.Table) -> None:
        """Add rows to the open row group, and write those that are full."""
        ends = np.cumsum(row_sizes(rows))
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            space = _GROUP_BYTES - self._waiting_bytes
            stop = int(np.searchsorted(ends, before + space, side="right"))
            if stop == start and not self._waiting:
                stop += 1  # a row that is larger than a group
            if stop > start:
                self._waiting.append(rows.slice(start, stop - start))
                self._waiting_bytes += int(ends[stop - 1]) - before
            if stop < len(ends):
                self._write_group()
            start = stop

    def close(self) -> None:
        """Write the rest and the footer."""
        self._write_group()
        self._writer.close()
        self._file.close()

    def abort(self) -> None:
        """Close the file as it is."""
        self._waiting.clear()
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()  # it would do so when it is collected, and complain
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_group(self) -> None:
        if not self._waiting:
            return
        # In one piece: pages end where pieces do.
        group = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._writer.write_table(group, row_group_size=group.num_rows)


def _layout(schema: pa.Schema) -> Mapping[str, Any]:
    """Return how the columns are encoded.

    Vectors are noise to a compressor: zstd saves 8 % and takes most of the time of reading. A
    dictionary makes lexical weights half as large again, and ids of tokens a tenth.
    """
    others, strings, compression = [], [], {}
    for field in schema:
        for leaf in _leaves(pa.schema([field])):
            vectors = _holds_vectors(field.type)
            compression[leaf.path] = "none" if vectors else "zstd"
            if not vectors:
                others.append(leaf.path)
            if leaf.physical_type == "BYTE_ARRAY":
                strings.append(leaf.path)
    return {"compression": compression, "use_dictionary": strings, "write_statistics": others}


def _holds_vectors(kind: pa.DataType) -> bool:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type))


def _leaves(schema: pa.Schema) -> Sequence[pq.ColumnSchema]:
    """Return the columns of Parquet, whose paths are such as ``sparse.values.list.element``."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(index) for index in range(len(columns))]
