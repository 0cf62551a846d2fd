"""Reads on where the last read ended: shards are read one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bge_runtime.bulk.files import InputFile
from bge_runtime.bulk.readers.base import FileIndex, OnBytes, RowBatch


class _Scan(NamedTuple):
    """A scan that was left where a read ended."""

    file: InputFile
    schema: pa.Schema
    row: int
    waiting: RowBatch | None
    batches: Iterator[RowBatch]


class ScanningReader(ABC):
    """A `Reader` whose format is read from front to back.

    A compressed file would otherwise be decompressed from its beginning for each shard, and a large
    row group of Parquet decoded. The last scan stays open until another file is read.
    """

    def __init__(self) -> None:
        """Start without a scan."""
        self._last: _Scan | None = None

    @abstractmethod
    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns that all files have: see `Reader.schema`."""

    @abstractmethod
    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many rows a file has, and where they are: see `Reader.index`."""

    @abstractmethod
    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield the rows of a file from one on, to its end.

        Raises:
            InputError: If the file cannot be read, or has changed since it was indexed.
        """

    def read(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int, count: int
    ) -> Iterator[RowBatch]:
        """Yield rows in the order of the file: see `Reader.read`."""
        end = min(first + count, index.rows)
        if first >= end:
            return
        waiting, batches = self._resume(file, index, schema, first)
        while True:
            batch = waiting if waiting is not None else next(batches, None)
            waiting = None
            if batch is None:  # what is left are blank lines
                return
            _, batch = _split(batch, first)
            batch, rest = _split(batch, end)
            if _is_filled(batch):
                yield batch
            if _is_filled(rest):
                self._last = _Scan(file, schema, end, rest, batches)
                return

    def _resume(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, first: int
    ) -> tuple[RowBatch | None, Iterator[RowBatch]]:
        last, self._last = self._last, None
        if last is not None and last.file == file and last.schema.equals(schema):
            # A new scan would begin to read here, at the last place before the row that is known.
            known = index.stride and first // index.stride * index.stride
            if not index.stride and index.offsets:
                known = index.offsets[bisect_right(index.offsets, first) - 1]
            if known <= last.row <= first:
                return last.waiting, last.batches
        return None, self.scan(file, index, schema, first=first)


def _split(batch: RowBatch, row: int) -> tuple[RowBatch, RowBatch]:
    """Return the rows of a batch before one, and the others."""
    position = int(np.searchsorted(batch.rows, row))
    return (
        RowBatch(
            batch.rows[:position],
            batch.columns.slice(0, position),
            [each for each in batch.bad if each.row < row],
        ),
        RowBatch(
            batch.rows[position:],
            batch.columns.slice(position),
            [each for each in batch.bad if each.row >= row],
        ),
    )


def _is_filled(batch: RowBatch) -> bool:
    return bool(len(batch.rows) or batch.bad)
