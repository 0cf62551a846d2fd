"""JSONL shards: what json reads in them, and what they refuse."""

from __future__ import annotations

import importlib.util
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.bulk.vectors import dense_array
from bge_runtime.bulk.writers import jsonl, open_format
from tests.helpers.arrow import embedded_table, write_shard


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    *lines, rest = text.split("\n")
    assert not rest
    return [json.loads(line) for line in lines]


def numbers(dtype: str, values: object) -> list[object]:
    """Return numbers of a type, as lists of Python."""
    return np.array(values, dtype).tolist()


@pytest.mark.parametrize("part_bytes", [1, 500, 4 << 20])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, part_bytes: int
):
    monkeypatch.setattr(jsonl, "_PART_BYTES", part_bytes)
    rows = embedded_table(50, dtype=dtype, colbert_dtype=dtype)
    (path,) = write_shard("jsonl", tmp_path, rows.slice(2), sizes=[7])
    found = read(path)
    for row in found:
        row["dense"] = numbers(dtype, row["dense"])
        row["sparse"]["values"] = numbers("float32", row["sparse"]["values"])
        row["colbert"] = numbers(dtype, row["colbert"])
    assert found == rows.slice(2).to_pylist()
    assert list(found[0]) == rows.column_names


def test_a_shard_without_rows_is_empty(tmp_path: Path):
    (path,) = write_shard("jsonl", tmp_path, embedded_table(0))
    assert path.read_bytes() == b""


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_are_the_shortest_that_read_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
):
    vector = np.array([values], np.float32)
    rows = pa.table({"id": [1], "dense": dense_array(vector, "float32")})
    (path,) = write_shard("jsonl", tmp_path_factory.mktemp("numbers"), rows)
    text = path.read_text()
    found = np.array(json.loads(text)["dense"], np.float32)
    assert found.tobytes() == vector.tobytes()
    written = text[text.index("[") + 1 : text.index("]")].split(",")
    for number, digits in zip(vector[0], written, strict=True):
        # NumPy writes 1e+16 where others write 1e16 or 10000000000000000.0.
        assert significant(digits) == significant(str(number))


def significant(number: str) -> str:
    return str(Decimal(number).as_tuple().digits).rstrip(", 0)")


def test_kept_columns_become_json(tmp_path: Path):
    moment = datetime(2026, 12, 1, 3, 4, 5, 678901, tzinfo=UTC)
    moments = pa.array([moment], pa.timestamp("ns", "UTC"))
    rows = pa.table(
        {
            "id": pa.array(["é\n\u2028"]),
            "float": pa.array([float("nan")]),
            "date": pa.array([date(2026, 12, 1)]),
            "moment": pc.add(moments, pa.scalar(1, pa.duration("ns"))),
            "price": pa.array([Decimal("1.50")]),
            "flag": pa.array([True]),
            "nothing": pa.array([None]),
            "category": pa.array(["a"]).dictionary_encode(),
            "nested": pa.array([{"names": ["a", None], "size": 2}]),
        }
    )
    (path,) = write_shard("jsonl", tmp_path, rows)
    assert read(path) == [
        {
            "id": "é\n\u2028",
            "float": None,
            "date": "2026-12-01",
            "moment": "2026-12-01T03:04:05.678901+00:00",
            "price": "1.50",
            "flag": True,
            "nothing": None,
            "category": "a",
            "nested": {"names": ["a", None], "size": 2},
        }
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.list_(pa.large_binary()),
        pa.struct([("inner", pa.map_(pa.string(), pa.string()))]),
        pa.duration("s"),
        pa.list_(pa.timestamp("ns")),
    ],
    ids=str,
)
def test_types_that_json_does_not_have_are_refused(kind: pa.DataType):
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("kept", kind)])
    with pytest.raises(ValueError, match=r"column 'kept' .* use output_format='parquet'"):
        open_format("jsonl").check(schema)


def test_invalid_utf_8_in_a_kept_column_is_refused(tmp_path: Path):
    invalid = pa.array([b"\xff"]).cast(pa.string(), safe=False).view(pa.string())
    with pytest.raises(ValueError, match="column 'kept' holds invalid UTF-8"):
        write_shard("jsonl", tmp_path, pa.table({"id": [1], "kept": invalid}))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install orjson"):
        open_format("jsonl")
