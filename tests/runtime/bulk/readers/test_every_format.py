"""What holds for every input format: any rows, read from anywhere, in any pieces."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_runtime.bulk.files import InputError, InputFile, find_inputs
from bge_runtime.bulk.readers import (
    FileIndex,
    Reader,
    arrays,
    batches,
    delimited,
    line_files,
    open_reader,
)
from bge_runtime.bulk.readers import (
    parquet as parquet_reader,
)

Row = tuple[int, str]
Rows = list[Row]


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    """Make blocks, batches and strides so small that a few rows cross them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_files, "block_bytes", lambda _: 7)
        for module in (line_files, delimited):
            patch.setattr(module, "STRIDE", 3)
        for module in (arrays, batches, parquet_reader):
            patch.setattr(module, "BATCH_ROWS", 4)
        yield


def table(rows: Rows) -> pa.Table:
    return pa.table(
        {"id": pa.array([row[0] for row in rows], pa.int64()), "text": [row[1] for row in rows]},
        schema=pa.schema([("id", pa.int64()), ("text", pa.string())]),
    )


def parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(table(rows), file, row_group_size=3)
    return file.getvalue()


def arrow(rows: Rows, *, stream: bool = False) -> bytes:
    file = io.BytesIO()
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(file, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=3)
    return file.getvalue()


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps({"id": row[0], "text": row[1]}) + "\n" for row in rows).encode()


def delimited_text(rows: Rows, delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([("id", "text"), *rows])
    return b"\xef\xbb\xbf" + file.getvalue().encode()


def text(rows: Rows) -> bytes:
    return "".join(row[1].translate({10: None, 13: None}) + "\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    file = pa.BufferOutputStream()
    with pa.CompressedOutputStream(file, "zstd") as stream:
        stream.write(data)
    return file.getvalue().to_pybytes()


def in_a_line(text: str) -> str:
    """Return a text as TSV can hold it."""
    return text.translate({9: None, 10: None})


WRITE: dict[str, Callable[[Rows], bytes]] = {
    "parquet": parquet,
    "arrow": arrow,
    "ipc": lambda rows: arrow(rows, stream=True),
    "jsonl": jsonl,
    "jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "jsonl.zst": lambda rows: zstd(jsonl(rows)),
    "jsonl.bz2": lambda rows: bz2.compress(jsonl(rows)),
    "csv": delimited_text,
    "csv.gz": lambda rows: gzip.compress(delimited_text(rows)),
    "tsv": lambda rows: delimited_text([(n, in_a_line(text)) for n, text in rows], "\t"),
    "txt": text,
    "txt.zst": lambda rows: zstd(text(rows)),
}


class Input:
    """A file that was opened as a job does."""

    def __init__(self, path: Path, input_format: str) -> None:
        (self.file,) = find_inputs(path)
        self.reader: Reader = open_reader(input_format)
        self.read_bytes: list[int] = []
        self.index: FileIndex = self.reader.index(self.file, self.read_bytes.append)
        self.schema = self.reader.schema([self.file])

    def read(self, first: int = 0, count: int = 1 << 40) -> dict[int, Any]:
        """Return values, or the reason why a row is bad, by number."""
        found: dict[int, Any] = {}
        batches = self.reader.read(self.file, self.index, self.schema, first=first, count=count)
        for batch in batches:
            assert batch.columns.schema.equals(self.schema)
            assert len(batch.rows) == batch.columns.num_rows
            rows = dict(zip(batch.rows.tolist(), batch.columns.to_pylist(), strict=True))
            bad = dict(batch.bad)
            assert rows or bad
            assert len(rows) + len(bad) <= 4
            numbers = sorted([*rows, *bad])
            assert numbers == sorted({*rows, *bad})
            assert not found or numbers[0] > max(found)
            found |= {number: {**rows, **bad}[number] for number in numbers}
        return found


FORMATS = {
    "parquet": "parquet",
    "arrow": "arrow",
    "ipc": "arrow",
    "jsonl": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "txt": "text",
}


def write(suffix: str, data: bytes) -> Input:
    path = Path(tempfile.mkdtemp(dir=FOLDER)) / f"rows.{suffix}"
    path.write_bytes(data)
    return Input(path, FORMATS[suffix.partition(".")[0]])


FOLDER = ""


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    globals()["FOLDER"] = str(tmp_path_factory.mktemp("rows"))


characters = st.characters(exclude_categories=["Cs"])
rows_of_file = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(characters) | st.text('a",\t\n\r\ufeff é')),
    max_size=14,
)


@pytest.mark.parametrize("suffix", WRITE)
@settings(max_examples=30)
@given(rows_of_file)
def test_the_rows_of_a_file_are_those_that_were_written(suffix: str, rows: Rows):
    if not rows and suffix.startswith("jsonl"):
        return
    source = write(suffix, WRITE[suffix](rows))
    assert source.index.rows == len(rows)
    assert sum(source.read_bytes) == source.file.size_bytes
    if suffix.startswith("txt"):
        expected = [{"text": row[1].translate({10: None, 13: None})} for row in rows]
        if expected:
            expected[0]["text"] = expected[0]["text"].removeprefix("\ufeff")
    elif FORMATS[suffix.partition(".")[0]] in ("csv", "tsv"):
        of_lines = suffix == "tsv"
        expected = [
            {"id": str(row[0]), "text": in_a_line(row[1]) if of_lines else row[1]} for row in rows
        ]
    else:
        expected = [{"id": row[0], "text": row[1]} for row in rows]
    assert source.read() == dict(enumerate(expected))


@pytest.mark.parametrize("suffix", WRITE)
@settings(max_examples=30)
@given(rows_of_file.filter(bool), st.integers(0, 16), st.integers(0, 16))
def test_rows_read_from_anywhere_are_those_of_a_full_read(
    suffix: str, rows: Rows, first: int, count: int
):
    source = write(suffix, WRITE[suffix](rows))
    expected = {row: value for row, value in source.read().items() if first <= row < first + count}
    assert source.read(first, count) == expected


@pytest.mark.parametrize("suffix", WRITE)
@settings(max_examples=30)
@given(rows_of_file.filter(bool), st.lists(st.tuples(st.integers(0, 16), st.integers(1, 5))))
def test_one_reader_reads_parts_in_any_order(suffix: str, rows: Rows, parts: list[tuple[int, int]]):
    source = write(suffix, WRITE[suffix](rows))
    whole = source.read()
    for first, count in parts:
        # Left behind after its first batch, as a job does that fails.
        next(source.reader.read(source.file, source.index, source.schema, first=0, count=9), None)
        for start in (first, first + count):
            expected = {row: whole[row] for row in whole if start <= row < start + count}
            assert source.read(start, count) == expected


hostile = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\xff", b"a", b'{"a":1}\n', b'"b",2\n', b" "])
).map(b"".join)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "csv.gz", "txt"])
@given(hostile, st.integers(1, 9))
def test_pieces_of_a_damaged_file_are_those_of_a_full_read(suffix: str, data: bytes, size: int):
    head = {"csv": b"a,b\n", "jsonl": b'{"a": 1}\n', "txt": b""}[suffix.partition(".")[0]]
    data = head + data
    source = write(suffix, gzip.compress(data) if suffix.endswith("gz") else data)
    whole = source.read()
    assert all(0 <= row < source.index.rows for row in whole)
    pieces: dict[int, Any] = {}
    fresh: dict[int, Any] = {}
    for first in range(0, source.index.rows, size):
        pieces |= source.read(first, size)
    for first in range(0, source.index.rows, size):
        source.reader = open_reader(FORMATS[suffix.partition(".")[0]])
        fresh |= source.read(first, size)
    assert pieces == fresh == whole


def damaged(file: InputFile, change: Callable[[bytes], bytes]) -> InputFile:
    path = Path(file.path)
    path.write_bytes(change(path.read_bytes()))
    return find_inputs(path)[0]


@pytest.mark.parametrize("suffix", WRITE)
def test_a_truncated_file_is_one_clear_error(suffix: str):
    rows = [(number, f"text {number}" * 50) for number in range(40)]
    source = write(suffix, WRITE[suffix](rows))
    source.file = damaged(source.file, lambda data: data[: len(data) // 2])
    with pytest.raises(InputError) as error:
        source.read()
    assert source.file.uri in str(error.value)
    assert any(
        advice in str(error.value) for advice in ("Copy it again", "copy it again", "Restore")
    )


@pytest.mark.parametrize("suffix", WRITE)
def test_a_file_that_vanished_is_one_clear_error(suffix: str):
    source = write(suffix, WRITE[suffix]([(1, "a")]))
    Path(source.file.path).unlink()
    with pytest.raises(InputError, match="is gone: restore it"):
        source.read()


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl.gz", "jsonl.zst", "jsonl.bz2"])
@pytest.mark.parametrize("data", [b"", b"no such format, but some bytes" * 10])
def test_a_file_of_another_format_is_one_clear_error(suffix: str, data: bytes, tmp_path: Path):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(data)
    if not data and "." in suffix:
        return  # an empty file, compressed
    with pytest.raises(InputError, match="opy it again"):
        Input(path, FORMATS[suffix.partition(".")[0]])
