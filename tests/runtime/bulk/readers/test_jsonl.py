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
from bge_runtime.bulk.rows import Columns, row_fields, select_columns


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
        ("a", 5, "has an integer in its field 'x', where a string is expected"),
        ("a", ["b"], "has a list in its field 'x', where a string is expected"),
        ("é", "\ud800", "has the lone surrogate U+D800 in its field 'x'"),
        (1, "1", "has a string in its field 'x', where an integer is expected"),
        (1, True, "has a boolean in its field 'x', where an integer is expected"),
        (
            1,
            1.5,
            "has a fraction in its field 'x', whose numbers are integers in the first 1,0",
        ),
        (1, 2**63, "has a number beyond 64 bits in its field 'x'"),
        (1.5, 2**53 + 1, "has an integer beyond 2^53 among the fractions of its field 'x'"),
        (1.5, 10**400, "has an integer beyond 2^53 among the fractions of its field 'x'"),
        (True, 1, "has an integer in its field 'x', where a boolean is expected"),
        ([1], ["\ud800"], "has the lone surrogate U+D800 in its field 'x'"),
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
    kept = json.dumps(usual) if isinstance(usual, list) else usual
    assert rows == [{"x": kept}] * 1499


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
    ],
)
def test_a_file_without_columns_is_an_error(
    tmp_path: Path, lines: list[Any], columns: list[str] | None, message: str
):
    with pytest.raises(InputError, match=message):
        schema(write(tmp_path / "a.jsonl", lines), columns)


def test_objects_and_lists_are_kept_as_json_whatever_their_members(tmp_path: Path):
    values = [{"a": 1}, {}, {"b": [1, "é"]}, None, [], "text", 5, True, {"a": {"a": None}}]
    path = write(tmp_path / "a.jsonl", [{"x": value} for value in values])
    assert schema(path).field("x").type == pa.string()
    rows, bad = read(path)
    assert not bad
    assert [row["x"] and json.loads(row["x"]) for row in rows] == values
    assert rows[2]["x"] == '{"b": [1, "é"]}'
    assert rows[3]["x"] is None


def test_a_number_that_json_cannot_hold_is_bad_in_an_object(tmp_path: Path):
    lines = [{"x": {}}, b'{"x": {"a": [1e999]}}']
    assert read(write(tmp_path / "a.jsonl", lines))[1] == {
        1: "has a number beyond 1.8e308 in its field 'x'"
    }


def test_an_object_is_no_text(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"text": {"a": 1}}])
    with pytest.raises(InputError, match="'text' holds objects or lists of JSON, and texts are st"):
        Columns(text=("text",)).check(schema(path), added=())
    kept = select_columns(schema(path), Columns(text=(), keep=("text",)))
    assert kept.field("text").metadata == schema(path).field("text").metadata
    (_, field) = row_fields(kept, Columns(text=(), keep=("text",)), chunks=False)
    assert field.metadata is None


def test_the_first_rows_of_all_files_decide_the_types(tmp_path: Path):
    write(tmp_path / "a.jsonl", [])
    write(tmp_path / "b.jsonl", [{"x": 1}])
    write(tmp_path / "c.jsonl", [b"no JSON"])
    assert schema(tmp_path) == pa.schema({"x": pa.int64()})
    write(tmp_path / "d.jsonl", [{"x": 1.5, "y": True}])
    assert schema(tmp_path) == pa.schema({"x": pa.float64(), "y": pa.bool_()})
