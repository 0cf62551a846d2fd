"""CSV and TSV: rows that are bad, and what is read after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bge_runtime.bulk.files import InputError, find_inputs
from bge_runtime.bulk.readers import line_files, open_reader, records


def read(path: Path, data: bytes, columns: list[str] | None = None) -> dict[int, Any]:
    """Return values, or the reason why a row is bad, by number."""
    path.write_bytes(data)
    (file,) = find_inputs(path)
    reader = open_reader(path.suffix[1:])
    index = reader.index(file, lambda _: None)
    columns_read = reader.schema([file], columns)
    found: dict[int, Any] = {}
    for batch in reader.read(file, index, columns_read, first=0, count=index.rows):
        rows = [tuple(row.values()) for row in batch.columns.to_pylist()]
        found |= dict(zip(batch.rows.tolist(), rows, strict=True)) | dict(batch.bad)
    return dict(sorted(found.items()))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"1,2", ("1", "2")),
        (b"1,2\r", ("1", "2")),
        (b",", ("", "")),
        (b'"a, ""b""\n\nc",2', ('a, "b"\n\nc', "2")),
        ("é,\u2028".encode(), ("é", "\u2028")),
        (b"a\x00b,2", ("a\x00b", "2")),
        (b'5" disk,2', ('5" disk', "2")),
        (b"1", "has 1 column, but the header has 2"),
        (b"1,2,3", "has 3 columns, but the header has 2"),
        (b"caf\xe9,2", "is not UTF-8: its byte 4 is 0xE9"),
        (b'"5" disk,2', "has quotes in a wrong place"),
        (b"a\rb,2", "has a carriage return outside of quotes"),
        (b'"never closed,2', "has a quote that is never closed"),
    ],
)
def test_a_row_has_its_values_or_a_reason(tmp_path: Path, line: bytes, expected: Any):
    found = read(tmp_path / "a.csv", b"x,y\n0,0\n" + line + b"\n\n9,9")
    assert [*found] == [0, 1, 3]
    assert (found[0], found[3]) == (("0", "0"), ("9", "9"))
    assert found[1] == expected or (isinstance(expected, str) and expected in found[1])


def test_a_row_that_is_too_large_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (line_files, records):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    lines = ['"' + "a" * 90, "b" * 101, *["c,d"] * 50, "e,f"]
    found = read(tmp_path / "a.csv", "\n".join(["x,y", *lines]).encode())
    assert "or a quote is never closed" in found[0]
    assert found[1].startswith("is too large: it has 102 bytes")
    assert [*found.values()][2:] == [("c", "d")] * 50 + [("e", "f")]


def test_tabs_delimit_tsv_and_columns_can_be_chosen(tmp_path: Path):
    found = read(tmp_path / "a.tsv", b"id\ttext\tx\n1\ta,b\tc\n", ["text", "id"])
    assert found == {0: ("a,b", "1")}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"never closed', '"never closed'),
        (b'closed"', 'closed"'),
        (b'"Yes" or "no"', '"Yes" or "no"'),
        (b'"', '"'),
        (b'""', ""),
        (b'"quoted"', "quoted"),
        (b'"a ""b"" c"', 'a "b" c'),
        (b'"""a"""', '"a"'),
        (b"a\rb", "a\rb"),
        (b'"caf\xe9', "is not UTF-8: its byte 7 is 0xE9"),
        (b'"a\tb"', "has 3 columns, but the header has 2"),
    ],
)
def test_a_line_of_tsv_is_a_row_whatever_its_quotes(tmp_path: Path, value: bytes, expected: str):
    found = read(tmp_path / "a.tsv", b'"id"\ttext\n0\tx\n1\t' + value + b'\r\n\n9\t"y"')
    assert (found[0], found[3]) == (("0", "x"), ("9", "y"))
    row = found[1]
    assert row == ("1", expected) or (isinstance(row, str) and row.startswith(expected))


def test_a_line_of_tsv_that_is_too_large_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (line_files, records):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    found = read(tmp_path / "a.tsv", b'x\ty\n1\t"' + b"a" * 200 + b"\n2\t3\n")
    assert found[0].startswith("is too large: it has 204 bytes")
    assert found[1] == ("2", "3")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: its first line must name its columns"),
        (b"\n\n", "is empty: its first line must name its columns"),
        (b'"x,y\n', "the first line of .* has a quote that is never closed"),
        (b"x,z\n1,2\n", "has no column 'y'; its columns are x, z"),
        (b"y,y\n1,2\n", "has 2 columns 'y': rename all but one"),
    ],
)
def test_a_header_that_does_not_name_the_columns_is_an_error(
    tmp_path: Path, data: bytes, message: str
):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.csv", data, ["y"])
