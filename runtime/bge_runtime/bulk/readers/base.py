"""What a reader of one file format does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bge_runtime.bulk.files import InputFile

OnBytes = Callable[[int], object]
"""Receives the number of bytes that were read since the last call."""


@dataclass(frozen=True, kw_only=True)
class FileIndex:
    """Where the rows of a file are.

    Attributes:
        rows: Number of rows, those that cannot be read included.
        stride: Rows between two entries of ``offsets``.
        offsets: Byte where the rows 0, ``stride``, 2 * ``stride``... begin, in files of lines that
            are not compressed. Empty for all others.
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

    def schema(self, files: Sequence[InputFile]) -> pa.Schema:
        """Return the columns of some files; types are inferred where the format has none.

        Raises:
            InputError: If a file cannot be read, or the files have no common schema.
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
        """Yield rows in the order of the file, a few thousand at a time.

        Args:
            file: The file.
            index: Its index.
            schema: The columns to read, and the types that they get.
            first: Number of the first row.
            count: Number of rows.

        Raises:
            InputError: If the file cannot be read.
        """
        ...
