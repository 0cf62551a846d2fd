"""Parquet and Arrow: types of columns, files that differ, and damaged ones."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.bulk.files import InputError, InputFile, find_inputs, format_of, open_file
from bge_runtime.bulk.readers import arrays, arrow, line_files, open_reader, parquet


def write_parquet(table: pa.Table, path: Any) -> None:
    pq.write_table(table, path, row_group_size=100)


def write_file(table: pa.Table, path: Any) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def write_stream(table: pa.Table, path: Any) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def read(folder: Path, columns: list[str] | None = None) -> tuple[pa.Table, dict[int, str]]:
    """Return the rows of all files, and the reasons of bad ones."""
    files = find_inputs(folder)
    reader = open_reader(format_of(files))
    schema = reader.schema(files, columns)
    tables = [schema.empty_table()]
    bad = {}
    for file in files:
        index = reader.index(file, lambda _: None)
        for batch in reader.read(file, index, schema, first=0, count=index.rows):
            tables.append(pa.Table.from_batches([batch.columns]))
            bad |= dict(batch.bad)
    return pa.concat_tables(tables), bad


@pytest.fixture(params=[("parquet", write_parquet), ("arrow", write_file), ("ipc", write_stream)])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., None]:
    suffix, write_table = request.param

    def write_columns(name: str, **columns: Any) -> None:
        write_table(pa.table(columns), tmp_path / f"{name}.{suffix}")

    return write_columns


KEPT = [
    pa.array([b"\x00\xff", None]),
    pa.array([1.5, None], pa.float16()),
    pa.array([[1, 2], None], pa.list_(pa.int16(), 2)),
    pa.array([{"a": [{"b": 1}]}, None]),
    pa.array([0, None], pa.timestamp("us", "UTC")),
    pa.array([1, None], pa.uint64()),
    pa.array(["é", None], pa.large_string()),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
]


@pytest.mark.parametrize("column", KEPT, ids=lambda column: str(column.type))
def test_columns_keep_their_types(write: Callable[..., None], tmp_path: Path, column: pa.Array):
    write("a", text=["a", "b"], kept=column)
    table, bad = read(tmp_path, ["kept"])
    assert table == pa.table({"kept": column})
    assert not bad


def test_dictionaries_and_views_become_plain_columns(write: Callable[..., None], tmp_path: Path):
    write("a", x=pa.array(["b", "a", "b"]).dictionary_encode(), y=pa.array(["c"] * 3))
    write("b", x=pa.array(["c"]).dictionary_encode(), y=pa.array(["d"]).cast(pa.string_view()))
    table, _ = read(tmp_path)
    assert table == pa.table({"x": ["b", "a", "b", "c"], "y": ["c", "c", "c", "d"]})


def test_files_get_a_type_that_holds_the_values_of_all(write: Callable[..., None], tmp_path: Path):
    write("a", x=pa.array([1], pa.int32()), y=["a"], z=[1])
    write("b", y=pa.nulls(1, pa.null()), x=pa.array([2**40], pa.int64()))
    table, _ = read(tmp_path)
    assert table == pa.table({"x": [1, 2**40], "y": ["a", None]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["text"], "b.* has no column 'text'; its columns are id"),
        (["id"], "column 'id' of .*b.* has type int64, in files before it string"),
    ],
)
def test_files_that_do_not_fit_together_are_an_error(
    write: Callable[..., None], tmp_path: Path, columns: list[str], message: str
):
    write("a", id=["1"], text=["a"])
    write("b", id=[2])
    with pytest.raises(InputError, match=message):
        read(tmp_path, columns)


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path):
    table = pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"])
    write_file(table, tmp_path / "a.arrow")
    with pytest.raises(InputError, match="has 2 columns 'text': rename all but one"):
        read(tmp_path, ["text"])


def test_columns_with_dots_are_not_members_of_others(tmp_path: Path):
    table = pa.table({"a": [{"b": 1}], "a.b": ["x"]})
    write_parquet(table, tmp_path / "a.parquet")
    assert read(tmp_path, ["a.b"])[0] == table.select(["a.b"])


def test_rows_that_are_not_utf_8_are_bad(tmp_path: Path):
    texts = pa.array([b"a", b"caf\xe9", b"b", None]).view(pa.string())
    write_parquet(pa.table({"id": range(4), "text": texts}), tmp_path / "a.parquet")
    table, bad = read(tmp_path)
    assert table == pa.table({"id": [0, 2, 3], "text": ["a", "b", None]})
    assert bad == {1: "is not UTF-8 in its column 'text'"}


def test_rows_that_are_too_large_are_bad(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(arrays, "MAX_ROW_BYTES", 1000)
    write("a", text=["a", "b" * 2000, "c"])
    table, bad = read(tmp_path)
    assert table == pa.table({"text": ["a", "c"]})
    assert bad[1].startswith("is too large: it has 2,004 bytes")


def test_feather_of_version_1_is_an_error(tmp_path: Path):
    (tmp_path / "a.feather").write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(InputError, match="is Feather version 1"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "write_table"),
    [("parquet", write_parquet), ("arrow", write_file), ("ipc", write_stream)],
)
def test_a_damaged_file_is_read_or_an_error(
    suffix: str, write_table: Callable[..., None], tmp_path: Path
):
    file = io.BytesIO()
    texts = [f"text {number} é" for number in range(200)]
    write_table(pa.table({"text": texts, "x": [[number] for number in range(200)]}), file)
    data = file.getvalue()

    @given(st.integers(0, len(data) - 1), st.integers(1, 255))
    def damage(position: int, bits: int) -> None:
        changed = bytearray(data)
        changed[position] ^= bits
        (tmp_path / f"a.{suffix}").write_bytes(changed)
        with suppress(InputError):
            read(tmp_path)

    damage()


def test_a_wrong_name_is_answered_with_the_nearest_of_many(tmp_path: Path):
    features = {f"feature {number}": [0] for number in range(3000)}
    pq.write_table(pa.table({**features, "body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError) as raised:
        open_reader("parquet").schema(find_inputs(tmp_path / "a.parquet"), ["bodi"])
    assert str(raised.value).endswith("feature 19 and 2,981 more; did you mean 'body'?")


@pytest.mark.parametrize("suffix", ["arrow", "csv", "jsonl", "parquet"])
def test_files_are_opened_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
):
    waiting = threading.Barrier(3)
    for number in range(3):
        path = tmp_path / f"{number}.{suffix}"
        if suffix == "arrow":
            write_file(pa.table({"x": ["a"]}), path)
        elif suffix == "parquet":
            pq.write_table(pa.table({"x": ["a"]}), path)
        else:
            path.write_text('x\n"a"\n' if suffix == "csv" else '{"x": "a"}\n')
    files = find_inputs(tmp_path)

    def open_together(file: InputFile) -> Any:
        waiting.wait(timeout=20)
        return open_file(file)

    module = {"arrow": arrow, "parquet": parquet}.get(suffix, line_files)
    monkeypatch.setattr(module, "open_file", open_together)
    assert open_reader(suffix).schema(files, ["x"]) == pa.schema({"x": pa.string()})
