"""How many bytes each row of Arrow data takes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_UNKNOWN = 16
"""Bytes of a value of a type that is not measured, such as a map."""


def row_sizes(rows: pa.Table) -> NDArray[np.int64]:
    """Return the number of bytes of each row, validity bits and offsets left out.

    It depends on the row alone, unlike the size of a table, which rounds.
    """
    sizes = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        start = 0
        for chunk in column.chunks:
            sizes[start : start + len(chunk)] += _sizes(chunk)
            start += len(chunk)
    return sizes


def _sizes(array: pa.Array) -> NDArray[np.int64]:
    kind = array.type
    sizes = np.full(len(array), _UNKNOWN, np.int64)
    if (width := _fixed_width(kind)) is not None:
        sizes[:] = width
    elif isinstance(kind, pa.BaseExtensionType):
        sizes = _sizes(array.storage)
    elif _is_binary(kind):
        sizes = _integers(pc.binary_length(array))
    elif pa.types.is_struct(kind):
        sizes = sum(map(_sizes, array.flatten()), np.zeros(len(array), np.int64))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        ends = np.cumsum(_integers(pc.list_value_length(array)))
        values = np.cumsum(np.concatenate([[0], _sizes(array.flatten())]))
        sizes = np.diff(values[ends], prepend=0)
    return sizes


def _fixed_width(kind: pa.DataType) -> int | None:
    """Return the bytes of a value, None if they differ."""
    if pa.types.is_fixed_size_list(kind):
        width = _fixed_width(kind.value_type)
        return None if width is None else width * int(kind.list_size)
    if pa.types.is_dictionary(kind):
        return _fixed_width(kind.index_type)
    if pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind):
        return int(kind.bit_width + 7) // 8
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _integers(array: pa.Array) -> NDArray[np.int64]:
    """Return integers, 0 for nulls."""
    return np.asarray(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))
