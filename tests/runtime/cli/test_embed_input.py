"""What ``bge-embed`` reads: lines as they come, and which of them cannot be embedded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.cli.embed_input import Row, read_jsonl, read_lines
from bge_runtime.cli.streams.input import BadRows, InputError, chunk_rows, open_input


def bad_rows_of(source: str, *, skip: bool) -> BadRows:
    return BadRows(source, command="bge-embed", done="embedded", skip=skip)


def lines_of(data: bytes) -> list[Row | None]:
    return list(read_lines(io.BytesIO(data), bad_rows_of("input", skip=False)))


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.booleans())
def test_rows_are_the_text_between_newlines(text: str, bom: bool):
    text = text.removeprefix("\ufeff")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    rows = lines_of(b"\xef\xbb\xbf" * bom + text.encode())
    assert [row.text for row in rows if row] == [line.removesuffix("\r") for line in lines]
    assert [row.line for row in rows if row] == list(range(1, len(lines) + 1))


@pytest.mark.parametrize("length", [1, 65_535, 65_536, 65_537, 1_000_000])
def test_lines_across_blocks_are_whole(length: int):
    lines = [f"{number}" * length for number in range(3)]
    assert [row.text for row in lines_of("\n".join(lines).encode()) if row] == lines


BAD = [
    (b"{", "is not JSON"),
    (b"[1]", "has no string field 'text'"),
    (b'"text"', "has no string field 'text'"),
    (b'{"text": 1}', "has no string field 'text'"),
    (b'{"text": null}', "has no string field 'text'"),
    (b'{"Text": "a"}', "has no string field 'text'"),
    (b'{"text": "a"} {"text": "b"}', "is not JSON"),
    (b'{"text": "a", "x": NaN}', "is not JSON, which has no NaN"),
    (b'{"text": "a", "x": [{"y": -Infinity}]}', "is not JSON, which has no -Infinity"),
    (b'{"text": "a", "x": 1e999}', "has a number beyond 1.8e308"),
    (b'{"text": "a", "x": ' + b"1" * 5000 + b"}", "has a number of more than 4300 digits"),
    (b'{"text": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
    (b"[" * 100_000, "is nested too deeply"),
    (b'{"text": "\\ud800"}', "has the lone surrogate U+D800"),
    (b'{"text": "a\\udfffb"}', "has the lone surrogate U+DFFF"),
    (b'{"text": "a", "embedding": 1}', "already has a field 'embedding'"),
    (b'{"text": "caf\xe9"}', "is not UTF-8: its byte 14 is 0xE9"),
    (b"\xff\xfe{", "is not UTF-8: its byte 1 is 0xFF"),
    (b'{"text": "\xed\xa0\x80"}', "is not UTF-8: its byte 11 is 0xED"),
    (b'{"text": "a\x00b"}', "is not JSON"),
    (b"\xc2\xa0", "is not JSON"),  # a space that JSON does not know
]


@pytest.mark.parametrize(("line", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_a_bad_row_is_named_by_its_own_line(
    line: bytes, problem: str, capsys: pytest.CaptureFixture[str]
):
    # Far behind the first block, and behind lines that give no row.
    before = b'{"text": "good"}\n\n' * 5000
    after = b'{"text": "more", "x": [1, 1.5, "\\ud800"]}\n'
    message = f"input, line 10001 {problem}"

    def rows(*, skip: bool) -> Iterator[Row | None]:
        bad_rows = bad_rows_of("input", skip=skip)
        return read_jsonl(
            io.BytesIO(before + line + b"\n" + after), "text", ["embedding"], bad_rows
        )

    chunks = chunk_rows(rows(skip=False), 8192)
    assert len(next(chunks)) == 5000  # rows before it are not lost
    with pytest.raises(InputError) as raised:
        next(chunks)
    assert str(raised.value).startswith(message)

    *good, last = rows(skip=True)
    assert len(good) == 5000
    assert last == Row(10002, "more", '"x": [1, 1.5, "\\ud800"]')
    assert capsys.readouterr().err.startswith(f"bge-embed: skipped: {message}")


FRAGMENTS = [
    b'{"text": ', b'"a"', b'"text"', b": ", b", ", b"}", b"{", b"[", b"]", b"NaN", b"-Infinity",
    b"1e999", b"-0", b'"\\ud83d"', b'"\\udc00"', b"\\", b"\xe9", b"\xc3\xa9", b"\xed\xa0\x80",
    b"\r", b'"x": ', b"null", b"true", b"7" * 4301, b"\x00", b" ",
]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=3)), max_size=6))
def test_every_line_is_a_row_or_a_bad_one_and_rows_are_json(parts: list[list[bytes]]):
    lines = [b"".join(line).replace(b"\n", b"") for line in parts]
    with contextlib.redirect_stderr(io.StringIO()):
        bad_rows = bad_rows_of("input", skip=True)
        read = read_jsonl(io.BytesIO(b"\n".join(lines)), "text", ["embedding"], bad_rows)
        rows = [row for row in read if row is not None]

    def no_constant(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    for row in rows:
        row.text.encode()
        members = json.loads(f"{{{row.members}}}", parse_constant=no_constant)
        assert {"text", "embedding"}.isdisjoint(members)
    blank = sum(
        not line.removeprefix(b"\xef\xbb\xbf" * (number == 0))
        .decode(errors="replace")
        .strip(" \t\r\n")
        for number, line in enumerate(lines)
    )
    assert len(rows) + bad_rows.count + blank == len(lines)


def test_only_the_first_bad_rows_are_reported_one_by_one(capsys: pytest.CaptureFixture[str]):
    bad_rows = bad_rows_of("input", skip=True)
    assert list(read_lines(io.BytesIO(b"\xe9\n" * 1000), bad_rows)) == []
    with pytest.raises(InputError, match="no line of input could be embedded"):
        bad_rows.summarize(0)
    bad_rows.summarize(1)
    lines = capsys.readouterr().err.splitlines()
    assert 20 < len(lines) < 30
    assert lines[-1] == "bge-embed: 1000 lines skipped, 1 embedded"


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[io.FileIO, io.FileIO]]:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "wb", buffering=0) as writer:
        yield reader, writer


def test_long_texts_or_fields_make_short_chunks():
    lines = [{"text": "a" * 600}, {"text": "b", "body": "c" * 600}, {"text": "d"}, {"text": "e"}]
    data = "\n".join(map(json.dumps, lines)).encode()
    rows = read_jsonl(io.BytesIO(data), "text", ["embedding"], bad_rows_of("input", skip=False))
    chunks = [[row.text[0] for row in chunk] for chunk in chunk_rows(rows, 8192, characters=500)]
    assert chunks == [["a"], ["b"], ["d", "e"]]


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_of_a_pipe_are_yielded_when_it_pauses(
    pipe: tuple[io.FileIO, io.FileIO], blocking: bool
):
    reader, writer = pipe
    os.set_blocking(reader.fileno(), blocking)
    chunks = chunk_rows(read_lines(reader, bad_rows_of("input", skip=False)), 8192)
    for text in ("first", "second"):
        writer.write(f"{text}\nbegun".encode())
        assert [row.text for row in next(chunks)][-1].endswith(text)
    writer.close()
    assert [row.text for chunk in chunks for row in chunk] == ["begun"]


def test_a_fast_pipe_comes_in_large_chunks(pipe: tuple[io.FileIO, io.FileIO]):
    reader, writer = pipe
    texts = [f"line {number}" for number in range(20_000)]

    def write() -> None:
        with writer:
            writer.write("\n".join(texts).encode())

    thread = threading.Thread(target=write)
    thread.start()
    chunks = []
    for chunk in chunk_rows(read_lines(reader, bad_rows_of("input", skip=False)), 8192):
        chunks.append([row.text for row in chunk])
        thread.join()  # as long as this one is computed, the input goes on
    assert [text for chunk in chunks for text in chunk] == texts
    assert max(map(len, chunks)) > 4096


def test_rows_that_were_read_before_an_error_are_not_lost(pipe: tuple[io.FileIO, io.FileIO]):
    reader, writer = pipe
    writer.write(b"one\ntwo\n\xe9\nthree\n")
    chunks = chunk_rows(read_lines(reader, bad_rows_of("input", skip=False)), 8192)
    assert [row.text for row in next(chunks)] == ["one", "two"]
    with pytest.raises(InputError, match="line 3 is not UTF-8"):
        next(chunks)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere.txt", "No such file"),
        (".", "Is a directory"),
        ("x" * 300, "File name too long"),
        ("/proc/self/mem", "Input/output error"),
    ],
)
def test_unreadable_input_is_an_error_of_one_sentence(source: str, reason: str):
    with pytest.raises(InputError, match=f"cannot read .*: {reason}"), open_input(source) as file:
        list(read_lines(file, bad_rows_of(source, skip=True)))
