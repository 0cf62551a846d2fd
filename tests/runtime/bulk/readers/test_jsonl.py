"""JSON Lines: types of columns, and lines that do not have them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bge_runtime.bulk.files import InputError, find_inputs
from bge_runtime.bulk.readers import line_files, open_reader


def write(path: Path, lines: Iterable[Any]) -> Path:
    """Write lines of bytes as they are, and others as JSON."""
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data))
    return path


def schema(path: Path, columns: list[str] | None = None) -> pa.Schema:
    return open_reader("jsonl").schema(find_inputs(path), columns)


def read(path: Path, columns: list[str] | None = None) -> tuple[list[Any], dict[int, str]]:
    """Return the readable rows, and the reasons of the others."""
    (file,) = find_inputs(path)
    reader = open_reader("jsonl")
    index = reader.index(file, lambda _: None)
    batches = list(
        reader.read(file, index, reader.schema([file], columns), first=0, count=index.rows)
    )
    rows = [row for batch in batches for row in batch.columns.to_pylist()]
    return rows, {bad.row: bad.reason for batch in batches for bad in batch.bad}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", None], pa.string()),
        ([None, None], pa.string()),
        ([True, None], pa.bool_()),
        ([1, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([["a"], []], pa.list_(pa.string())),
        ([[[1.5]]], pa.list_(pa.list_(pa.float64()))),
        ([{"a": 1}, {"b": ["x"]}], pa.struct({"a": pa.int64(), "b": pa.list_(pa.string())})),
        (["a", 5, "b", {"c": 1}], pa.string()),  # of most values
    ],
)
def test_a_column_has_the_type_of_its_first_values(
    tmp_path: Path, values: list[Any], expected: pa.DataType
):
    path = write(tmp_path / "a.jsonl", [{"x": value} for value in values])
    assert schema(path).field("x").type == expected
    rows, bad = read(path)
    fitting = [value for value in values if not isinstance(value, int) or expected != pa.string()]
    assert len(rows) + len(bad) == len(values)
    assert pq.read_table(pq_file(tmp_path, rows, schema(path))).to_pylist() == rows
    assert len(rows) >= len(fitting) - 1


def pq_file(folder: Path, rows: list[Any], columns: pa.Schema) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, columns), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize(
    ("usual", "unusual", "reason"),
    [
        ("a", 5, "has a number in its field 'x', where a string is expected"),
        ("a", ["b"], "has a list in its field 'x', where a string is expected"),
        ("é", "\ud800", "has the lone surrogate U+D800 in its field 'x'"),
        (1, "1", "has a string in its field 'x', where an integer is expected"),
        (1, True, "has a boolean in its field 'x', where an integer is expected"),
        (1, 1.5, "has a fraction in its field 'x', where an integer is expected"),
        (1, 2**63, "has a number beyond 64 bits in its field 'x'"),
        (1.5, 2**53 + 1, "has an integer beyond 2^53 among the fractions of its field 'x'"),
        (1.5, 10**400, "has an integer beyond 2^53 among the fractions of its field 'x'"),
        (True, 1, "has a number in its field 'x', where a boolean is expected"),
        (["a"], {}, "has an object in its field 'x', where a list is expected"),
        (["a"], ["a", 1], "has a number in its field 'x[]', where a string is expected"),
        ([], ["a"], "has a string in its field 'x[]', where null is expected"),
        ({"a": 1}, {"a": 1, "b": 2}, "has a field 'x.b', which the first 1,000 rows"),
        ({"a": 1}, {"a": "1"}, "has a string in its field 'x.a', where an integer is expected"),
    ],
)
def test_a_later_value_of_another_type_is_bad(
    tmp_path: Path, usual: Any, unusual: Any, reason: str
):
    lines = [{"x": usual}] * 1500
    lines[1200] = {"x": unusual}
    rows, bad = read(write(tmp_path / "a.jsonl", lines))
    assert [*bad] == [1200]
    assert bad[1200].startswith(reason)
    assert rows == [{"x": usual}] * 1499


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is a list of JSON, not an object"),
        (b"null", "is null of JSON, not an object"),
        (b'{"x": 1e999}', "has a number beyond 1.8e308 in its field 'x'"),
        (b'{"x": NaN}', "is not JSON, which has no NaN"),
        (b'{"x": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"x": ' + b"1" * 5000 + b"}", "has a number of more than 4300 digits"),
        (b'{"y": "caf\xe9"}', "is not UTF-8: its byte 11 is 0xE9"),
    ],
)
def test_a_line_that_is_not_an_object_is_bad(tmp_path: Path, line: bytes, reason: str):
    good = {"x": 1.5}
    rows, bad = read(write(tmp_path / "a.jsonl", [b"\xef\xbb\xbf", good, line, b" \t\r", good]))
    assert rows == [good, good]
    assert [*bad] == [2]
    assert bad[2].startswith(reason)


def test_only_the_columns_of_interest_are_checked(tmp_path: Path):
    lines = [{"x": 1, "y": {}}, {"x": 2, "y": 5}, {"y": [1, "a"]}]
    rows, bad = read(write(tmp_path / "a.jsonl", lines), ["x"])
    assert (rows, bad) == ([{"x": 1}, {"x": 2}, {"x": None}], {})


def test_a_line_that_is_too_large_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(line_files, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(line_files, "block_bytes", lambda _: 64)
    path = write(tmp_path / "a.jsonl", [{"x": "a"}, {"x": "b" * 5000}, {"x": "c"}])
    rows, bad = read(path)
    assert rows == [{"x": "a"}, {"x": "c"}]
    assert [*bad] == [1]
    assert bad[1].startswith("is too large: it has 5,009 bytes")


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        ([b"[", b'{"x": 1}'], None, "is one JSON array, not an object a line"),
        ([b"nothing", b"of it"], None, "is an object of JSON: the first is not JSON"),
        ([{"x": 1}], ["y"], "have no field 'y'; their fields are x"),
        ([], ["y"], "has no row, so its fields are unknown"),
        (
            [{"x": {"a": 1}}, {"x": {"a": [1]}}],
            ["x"],
            "the field 'x' of .* has no type that holds all of its values",
        ),
        ([{"x": {}}], ["x"], "the field 'x' of .* has no type that holds all of its values"),
    ],
)
def test_a_file_without_common_types_is_an_error(
    tmp_path: Path, lines: list[Any], columns: list[str] | None, message: str
):
    with pytest.raises(InputError, match=message):
        schema(write(tmp_path / "a.jsonl", lines), columns)


def test_an_empty_first_file_does_not_decide_the_types(tmp_path: Path):
    write(tmp_path / "a.jsonl", [])
    write(tmp_path / "b.jsonl", [{"x": 1}])
    assert schema(tmp_path) == pa.schema({"x": pa.int64()})
