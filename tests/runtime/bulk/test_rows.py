"""From rows to windows: columns, templates, empty texts, bad rows, chunks."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.bulk import rows as module
from bge_runtime.bulk.chunks import Chunk
from bge_runtime.bulk.files import InputError
from bge_runtime.bulk.readers import BadRow, RowBatch
from bge_runtime.bulk.rows import Columns, Window, WindowReader, row_fields, select_columns


def batches(table: pa.Table, sizes: list[int], bad: dict[int, str]) -> Iterator[RowBatch]:
    """Yield a table's rows in batches of some sizes, repeated."""
    start, step = 0, 0
    while start < len(table):
        end = min(len(table), start + sizes[step % len(sizes)])
        good = [row for row in range(start, end) if row not in bad]
        yield RowBatch(
            np.array(good, dtype=np.int64),
            table.take(pa.array(good, pa.int64())).combine_chunks().to_batches()[0]
            if good
            else pa.RecordBatch.from_pylist([], schema=table.schema),
            [BadRow(row, bad[row]) for row in range(start, end) if row in bad],
        )
        start, step = end, step + 1


def read(
    table: pa.Table,
    columns: Columns,
    *,
    sizes: tuple[int, ...] = (3,),
    bad: dict[int, str] | None = None,
    on_empty: str = "skip",
    limit: int = 1000,
    split: module.SplitTexts | None = None,
) -> list[Window]:
    columns.check(table.schema, added=["id", "dense"])
    schema = select_columns(table.schema, columns)
    fields = row_fields(schema, columns, chunks=split is not None)
    reader = WindowReader(columns, fields, on_empty=on_empty, window_characters=limit, split=split)
    found = batches(table.select(schema.names).cast(schema), list(sizes), bad or {})
    return list(reader.read(0, iter([(0, found)]), start=0, end=len(table)))


def texts_of(windows: list[Window]) -> list[str]:
    return [text for window in windows for text in window.texts]


words = st.text(st.characters(codec="utf-8"), max_size=12)


@given(
    st.lists(words | st.none(), max_size=40),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sets(st.integers(0, 39)),
    st.integers(1, 60),
)
def test_windows_do_not_depend_on_how_rows_are_read(
    texts: list[str | None], sizes: list[int], bad: set[int], limit: int
) -> None:
    table = pa.table({"text": pa.array(texts, pa.string())})
    reasons = {row: "is bad" for row in bad if row < len(texts)}

    one = read(table, Columns(text=("text",)), sizes=(1,), bad=reasons, limit=limit)
    other = read(table, Columns(text=("text",)), sizes=tuple(sizes), bad=reasons, limit=limit)

    assert [window.texts for window in one] == [window.texts for window in other]
    assert [window.rejects for window in one] == [window.rejects for window in other]
    assert all(a.columns.equals(b.columns) for a, b in zip(one, other, strict=True))


@given(st.lists(words | st.none(), max_size=40), st.sets(st.integers(0, 39)))
def test_each_row_is_embedded_or_rejected_once(texts: list[str | None], bad: set[int]) -> None:
    table = pa.table({"text": pa.array(texts, pa.string())})
    bad = {row for row in bad if row < len(texts)}

    windows = read(table, Columns(text=("text",)), bad=dict.fromkeys(bad, "is bad"), limit=20)
    rejected = [reject.row for window in windows for reject in window.rejects]
    embedded = [int(row) for window in windows for row in window.rows]

    assert sorted(rejected + embedded) == list(range(len(texts)))
    assert rejected == sorted(rejected)
    assert embedded == sorted(embedded)
    assert [texts[row] for row in embedded] == texts_of(windows)
    assert sum(window.rows_read for window in windows) == len(texts)
    assert [window.last for window in windows] == [False] * (len(windows) - 1) + [True]
    assert pa.concat_tables(window.columns for window in windows)["id"].to_pylist() == embedded


def test_several_columns_are_joined_by_a_template_or_lines() -> None:
    table = pa.table({"title": ["A", None, " "], "body": ["one", "two", None], "x": [1, 2, 3]})
    columns = Columns(text=("title", "body"), id="x")

    plain = read(table, columns)
    templated = read(table, Columns(text=("title", "body"), template="{title}: {body}!"))

    assert texts_of(plain) == ["A\none", "\ntwo"]
    assert texts_of(templated) == ["A: one!", ": two!"]
    assert plain[0].columns["id"].to_pylist() == [1, 2]
    assert [(reject.row, reject.id, reject.empty) for reject in plain[0].rejects] == [(2, 3, True)]


@pytest.mark.parametrize(
    "template", ["{title", "{other}", "{title!r}", "{title:>10}", "{}", "{0}", "nothing", "{a.b}"]
)
def test_a_template_holds_only_columns(template: str) -> None:
    table = pa.table({"title": ["A"], "body": ["B"]})

    with pytest.raises(ValueError, match="template"):
        read(table, Columns(text=("title", "body"), template=template))


def test_empty_texts_can_be_embedded_and_nulls_are_bad_rows() -> None:
    table = pa.table({"text": ["a", "", None, " \n"]})

    (window,) = read(table, Columns(text=("text",)), on_empty="embed")

    assert window.texts == ["a", "", " \n"]
    assert [(reject.row, reject.empty) for reject in window.rejects] == [(2, False)]


def test_a_row_without_an_id_is_bad() -> None:
    table = pa.table({"text": ["a", "b"], "key": pa.array([None, "k"])})

    (window,) = read(table, Columns(text=("text",), id="key"))

    assert window.texts == ["b"]
    assert window.rejects[0].reason == "has no id in column 'key'"


def test_invalid_utf8_is_a_bad_row() -> None:
    broken = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.array([0, 1, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfeb")],
    )

    (window,) = read(pa.table({"text": broken}), Columns(text=("text",)))

    assert window.texts == ["a", "b"]
    assert "invalid UTF-8" in window.rejects[0].reason


def test_a_text_that_is_too_large_is_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_TEXT", 5)

    (window,) = read(pa.table({"text": ["abcdef", "abc"]}), Columns(text=("text",)))

    assert window.texts == ["abc"]
    assert "too large" in window.rejects[0].reason


def test_a_window_has_a_limited_number_of_texts() -> None:
    table = pa.table({"text": ["a"] * (2 * module.WINDOW_TEXTS + 1)})

    windows = read(table, Columns(text=("text",)), sizes=(1000,), limit=1 << 20)

    assert [len(window.texts) for window in windows] == [2048, 2048, 1]


def test_chunks_are_rows_with_their_places() -> None:
    def split(texts: list[str]) -> list[list[Chunk]]:
        return [[Chunk(a, min(len(text), a + 2)) for a in range(0, len(text), 2)] for text in texts]

    table = pa.table({"text": ["abcde", "", "xy"], "n": [5, 6, 7]})

    (window,) = read(table, Columns(text=("text",), id="n", keep=("n",)), split=split)

    assert window.texts == ["ab", "cd", "e", "xy"]
    assert window.columns.to_pydict() == {
        "id": [5, 5, 5, 7],
        "chunk": [0, 1, 2, 0],
        "start": [0, 2, 4, 0],
        "end": [2, 4, 5, 2],
        "n": [5, 5, 5, 7],
    }
    assert window.rows.tolist() == [0, 0, 0, 2]


def test_a_chunk_keeps_its_own_part_of_the_text() -> None:
    def split(texts: list[str]) -> list[list[Chunk]]:
        return [[Chunk(a, min(len(text), a + 2)) for a in range(0, len(text), 2)] for text in texts]

    table = pa.table({"text": ["abcde"], "title": ["T"]})
    columns = Columns(text=("text",), keep=("title", "text"))

    (window,) = read(table, columns, split=split)

    assert window.columns["text"].to_pylist() == ["ab", "cd", "e"]
    assert window.columns["title"].to_pylist() == ["T", "T", "T"]


@pytest.mark.parametrize("chunked", [False, True])
def test_large_columns_that_are_kept_make_smaller_windows(
    chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_BYTES", 100)
    split = (lambda texts: [[Chunk(0, 1), Chunk(1, 2)] for _ in texts]) if chunked else None
    table = pa.table({"text": ["ab"] * 9, "image": [bytes(30)] * 9})
    columns = Columns(text=("text",), keep=("image",))

    one = read(table, columns, split=split)
    other = read(table, columns, split=split, sizes=(1, 4))

    assert max(len(window.texts) for window in one) <= 3
    assert [window.texts for window in one] == [window.texts for window in other]
    assert sum(len(window.texts) for window in one) == (18 if chunked else 9)
    assert sum(window.rows_read for window in one) == 9
    assert [window.last for window in one] == [False] * (len(one) - 1) + [True]


def test_a_column_with_a_dot_in_its_name_is_no_attribute() -> None:
    table = pa.table({"a.b": ["x"], "a": ["y"]})

    (window,) = read(table, Columns(text=("a.b", "a"), template="{a.b} {{{a}}}"))

    assert window.texts == ["x {y}"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (
            Columns(text=("body",)),
            "no single column 'body'; it has text, number, id, dense",
        ),
        (Columns(text=("number",)), "holds int64, and texts are strings"),
        (Columns(text=("text",), keep=("dense",)), "cannot keep column 'dense'"),
        (Columns(text=("text",), id="key"), "no single column 'key'"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns: Columns, problem: str) -> None:
    table = pa.table({"text": ["a"], "number": [1], "id": [1], "dense": [1]})

    with pytest.raises(InputError, match=problem):
        columns.check(table.schema, added=["id", "dense"])


def test_dictionaries_are_decoded() -> None:
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})

    assert texts_of(read(table, Columns(text=("text",)))) == ["a", "b", "a"]
