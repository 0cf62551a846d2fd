"""Bytes of each row, compared with the sizes that Arrow says for a table of one row."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from bge_runtime.bulk.writers.row_sizes import row_sizes

STRUCT = pa.struct([("name", pa.string()), ("sizes", pa.list_(pa.int16()))])


@pytest.mark.parametrize(
    ("kind", "values", "sizes"),
    [
        (pa.int16(), [1, None, 3], [2, 2, 2]),
        (pa.bool_(), [True, None], [1, 1]),
        (pa.string(), ["", "ä", None, "four"], [0, 2, 0, 4]),
        (pa.large_binary(), [b"12", None], [2, 0]),
        (pa.binary(3), [b"123", None], [3, 3]),
        (pa.timestamp("ns"), [datetime(2026, 12, 1, tzinfo=UTC), None], [8, 8]),
        (pa.decimal128(10, 2), [None], [16]),
        (pa.list_(pa.float16(), 4), [[1, 2, 3, 4], None], [8, 8]),
        (pa.list_(pa.list_(pa.float16(), 4)), [[], [[1, 2, 3, 4]] * 3, None], [0, 24, 0]),
        (pa.large_list(pa.string()), [["a", "bc"], None, [], [None, "d"]], [3, 0, 0, 1]),
        (pa.list_(pa.list_(pa.string())), [[["a"], ["bc"]], [], [["d"], None]], [3, 0, 1]),
        (STRUCT, [{"name": "ab", "sizes": [1]}, None, {"name": "c", "sizes": []}], [4, 0, 1]),
        (pa.dictionary(pa.int32(), pa.string()), ["long", "long"], [4, 4]),
        (pa.null(), [None], [16]),
        (pa.map_(pa.string(), pa.string()), [[("a", "b")], None], [16, 16]),
        (pa.string_view(), ["a", None], [16, 16]),
    ],
    ids=str,
)
def test_sizes_are_those_of_the_values(kind: pa.DataType, values: list[object], sizes: list[int]):
    rows = pa.table({"column": pa.array(values, kind)})
    assert row_sizes(rows).tolist() == sizes
    # Also for parts of an array, and for columns of several arrays.
    assert row_sizes(rows.slice(1)).tolist() == sizes[1:]
    assert row_sizes(pa.concat_tables([rows.slice(1), rows])).tolist() == [*sizes[1:], *sizes]


def test_sizes_of_columns_are_added():
    rows = pa.table({"number": pa.array([1, 2]), "text": ["abc", ""]})
    assert row_sizes(rows).tolist() == [11, 8]
