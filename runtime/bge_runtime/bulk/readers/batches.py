"""Collects parsed rows of line formats into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bge_runtime.bulk.readers.base import BATCH_BYTES, BATCH_ROWS, BadRow, RowBatch


class BatchBuilder:
    """Collects rows until a batch is full."""

    def __init__(self, schema: pa.Schema) -> None:
        """Start an empty batch of some columns."""
        self._schema = schema
        self._clear()

    def _clear(self) -> None:
        self._numbers: list[int] = []
        self._rows: list[Sequence[Any]] = []
        self._bad: list[BadRow] = []
        self._size_bytes = 0

    def add(self, number: int, values: Sequence[Any], size_bytes: int) -> None:
        """Add a row: one value for each column, of its type, and about how large they are."""
        self._numbers.append(number)
        self._rows.append(values)
        self._size_bytes += size_bytes

    def add_bad(self, number: int, reason: str) -> None:
        """Add a row that cannot be read."""
        self._bad.append(BadRow(number, reason))

    @property
    def full(self) -> bool:
        """Whether the batch should be taken."""
        held = len(self._numbers) + len(self._bad)
        return held >= BATCH_ROWS or self._size_bytes >= BATCH_BYTES

    def __bool__(self) -> bool:
        return bool(self._numbers or self._bad)

    def take(self) -> RowBatch:
        """Return the batch, and start the next one."""
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(self._schema)
        arrays = [
            pa.array(values, type=field.type)
            for values, field in zip(columns, self._schema, strict=True)
        ]
        batch = RowBatch(
            np.array(self._numbers, np.int64),
            pa.RecordBatch.from_arrays(arrays, schema=self._schema),
            self._bad,
        )
        self._clear()
        return batch
