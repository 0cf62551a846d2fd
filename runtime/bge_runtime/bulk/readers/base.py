"""What a reader of one file format does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bge_runtime.bulk.files import InputError, InputFile

MAX_ROW_BYTES = 64 << 20
"""A larger row is not read, and reported as bad: a thousand times a long document."""

BATCH_ROWS = 2048
"""Most rows of a batch."""

BATCH_BYTES = 16 << 20
"""A batch is also full with about this many bytes of its file."""

OnBytes = Callable[[int], object]
"""Receives the number of bytes that were read since the last call."""


@dataclass(frozen=True, kw_only=True)
class FileIndex:
    """Where the rows of a file are.

    Attributes:
        rows: Number of rows, those that cannot be read and blank lines included.
        stride: Rows between two entries of ``offsets``.
        offsets: Byte where the rows 0, ``stride``, 2 * ``stride``... begin, in files of lines that
            are not compressed. In Arrow and Parquet, the row with which each record batch or row
            group begins. Empty for all others.
    """

    rows: int
    stride: int = 0
    offsets: tuple[int, ...] = ()


class BadRow(NamedTuple):
    """A row that cannot be read.

    Attributes:
        row: Its number in the file, from 0.
        reason: What is wrong with it. It continues "row 3".
    """

    row: int
    reason: str


class RowBatch(NamedTuple):
    """Consecutive rows of a file.

    Blank lines of JSONL, CSV and TSV have a number, but are neither a row nor bad. So the row of a
    line is its number, from 0, in JSONL and text.

    Attributes:
        rows: Numbers of the readable rows in the file, ascending. Shape: ``(n,)``.
        columns: Their columns, as many rows.
        bad: The rows in between that cannot be read.
    """

    rows: NDArray[np.int64]
    columns: pa.RecordBatch
    bad: Sequence[BadRow] = ()


class Reader(Protocol):
    """Reads the files of one format, as a stream: memory does not depend on a file's size."""

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns that all files have; types are inferred where the format has none.

        Args:
            files: The files.
            columns: The columns of interest, in this order. Without them, all that all files have.

        Raises:
            InputError: If a file cannot be read or lacks a column, or the files have no common
                type of a column.
        """
        ...

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many rows a file has, and where they are.

        Raises:
            InputError: If the file cannot be read.
        """
        ...

    def read(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int, count: int
    ) -> Iterator[RowBatch]:
        """Yield rows in the order of the file, at most `BATCH_ROWS` at a time.

        Read consecutive rows with one reader, by one thread: it goes on where the last read ended.

        Args:
            file: The file.
            index: Its index.
            schema: The columns to read, and the types that they get.
            first: Number of the first row.
            count: Number of rows.

        Raises:
            InputError: If the file cannot be read, or has changed since it was indexed.
        """
        ...


def changed(file: InputFile, index: FileIndex, rows: int) -> InputError:
    """Return the error of a file that has another number of rows than its index says."""
    return InputError(
        f"{file.uri} has changed: it had {index.rows:,} rows, now {rows:,}. Restore it, or start a "
        "new job"
    )
