"""Reads Parquet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bge_runtime.bulk.files import InputFile, block_bytes, open_file, reading
from bge_runtime.bulk.readers.arrays import (
    common_schema,
    map_files,
    require_column,
    to_batches,
)
from bge_runtime.bulk.readers.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    FileIndex,
    OnBytes,
    RowBatch,
    changed,
)
from bge_runtime.bulk.readers.scan import ScanningReader


class ParquetReader(ScanningReader):
    """Reads Parquet page by page, also files of one huge row group."""

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns that all files have."""
        return common_schema(files, map_files(_schema, files), columns)

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many rows the footer states."""
        with reading(file), _open(file) as parquet:
            groups = _rows_of_groups(parquet.metadata)
        on_bytes(file.size_bytes)
        starts = accumulate(groups[:-1], initial=0) if groups else ()
        return FileIndex(rows=sum(groups), offsets=tuple(starts))

    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield rows; row groups before the first one are not read."""
        with reading(file), _open(file) as parquet:
            metadata = parquet.metadata
            if metadata.num_rows != index.rows:
                raise changed(file, index, metadata.num_rows)
            for name in schema.names:
                require_column(file, parquet.schema_arrow, name)
            start = bisect_right(index.offsets, first) - 1
            row = index.offsets[start]
            batches = parquet.iter_batches(
                batch_size=_batch_rows(metadata),
                row_groups=range(start, metadata.num_row_groups),
                columns=schema.names,
                use_threads=False,
            )
            for batch in batches:
                begin = max(first - row, 0)
                yield from to_batches(batch.slice(begin), schema, row + begin)
                row += batch.num_rows


@contextmanager
def _open(file: InputFile) -> Iterator[Any]:
    with open_file(file) as stream:
        # Without a buffer, the columns of a row group would be read as a whole.
        yield pq.ParquetFile(stream, pre_buffer=False, buffer_size=block_bytes(file))


def _schema(file: InputFile) -> pa.Schema:
    with reading(file), _open(file) as parquet:
        return parquet.schema_arrow


def _rows_of_groups(metadata: Any) -> list[int]:
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _batch_rows(metadata: Any) -> int:
    """Return how many rows to decode at a time: fewer where rows are large."""
    row_bytes = max(
        metadata.row_group(group).total_byte_size // max(metadata.row_group(group).num_rows, 1)
        for group in range(metadata.num_row_groups)
    )
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES // max(row_bytes, 1))))
