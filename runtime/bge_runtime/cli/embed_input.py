"""The input of ``bge-embed``: read rows of text or JSONL as they arrive, and report bad ones."""

from __future__ import annotations

import json
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, NamedTuple

import click

from bge_runtime.errors import BgeError
from bge_runtime.lines import (
    BadLineError,
    check_characters,
    decode_line,
    is_blank,
    parse_json,
    skip_mark,
    split_lines,
)

_BLOCK_BYTES = 1 << 16
"""Bytes that are read at a time: the capacity of a pipe on Linux."""

_BLOCKS_AHEAD = 256
"""Most blocks of a pipe that are read ahead while texts are embedded."""

_REPORTED_BAD_ROWS = 20
"""Bad rows that are reported one by one. Further ones are only counted."""


class InputError(BgeError):
    """The input cannot be read as asked."""


class Row(NamedTuple):
    """A text and its line of the input.

    Attributes:
        line: Number of the line, from 1.
        text: The text to embed.
        members: Other fields for the output: members of a JSON object, without the braces.
    """

    line: int
    text: str
    members: str


class BadRows:
    """Handles rows that cannot be embedded: the first one is an error, or all are skipped.

    Attributes:
        source: Name of the input, for error messages.
        count: Rows skipped so far.
    """

    def __init__(self, source: str, *, skip: bool) -> None:
        """Start without bad rows."""
        self.source = source
        self._skip = skip
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        """Report a bad row.

        Args:
            line: Number of the line.
            problem: What is wrong with it. It continues "line 3".

        Raises:
            InputError: If bad rows are not skipped.
        """
        message = f"{self.source}, line {line} {problem}"
        if not self._skip:
            raise InputError(message)
        self.count += 1
        if self.count <= _REPORTED_BAD_ROWS:
            click.echo(f"bge-embed: skipped: {message}", err=True)
        elif self.count == _REPORTED_BAD_ROWS + 1:
            click.echo("bge-embed: further skipped lines are not reported", err=True)

    def summarize(self, *, embedded: int) -> None:
        """Report how many rows were skipped.

        Args:
            embedded: Number of rows that were embedded.

        Raises:
            InputError: If all rows were skipped, which may mean a wrong ``--field``.
        """
        if not self.count:
            return
        lines = "line" if self.count == 1 else "lines"
        click.echo(f"bge-embed: {self.count} {lines} skipped, {embedded} embedded", err=True)
        if not embedded:
            raise InputError(f"no line of {self.source} could be embedded")


@contextmanager
def open_input(source: str) -> Iterator[IO[bytes]]:
    """Open a file, or standard input for ``-``, unbuffered.

    Raises:
        InputError: If it cannot be opened.
    """
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; name an INPUT file")
        # Unbuffered: a thread that waits for input would hold the lock of the buffer until the end.
        yield getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        return
    try:
        file = open(source, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    with file:
        yield file


def read_lines(file: IO[bytes], bad_rows: BadRows) -> Iterator[Row | None]:
    """Read rows with one text per line; yield None when the input pauses."""
    return _read(file, _parse_line, bad_rows)


def read_jsonl(
    file: IO[bytes], field: str, results: Sequence[str], bad_rows: BadRows
) -> Iterator[Row | None]:
    """Read rows with one JSON object per line; yield None when the input pauses.

    Args:
        file: The input.
        field: Name of the field with the text.
        results: Names of fields that the output adds.
        bad_rows: Receives the lines that cannot be embedded.
    """
    return _read(file, partial(_parse_json, field=field, results=results), bad_rows)


def chunk_rows(
    rows: Iterator[Row | None], size: int, *, characters: int = sys.maxsize
) -> Iterator[list[Row]]:
    """Yield lists of rows, each as long as possible without waiting for input.

    Rows that were read before an error are yielded before it is raised.

    Args:
        rows: Rows, and None when the input pauses.
        size: Most rows of a list.
        characters: A list is also full with this many characters of texts and members.
    """
    chunk: list[Row] = []
    held = 0
    failure = None
    try:
        for row in rows:
            if row is not None:
                chunk.append(row)
                held += len(row.text) + len(row.members)
            full = len(chunk) == size or held >= characters
            if chunk and (full or row is None):
                yield chunk
                chunk, held = [], 0
    except InputError as error:
        failure = error
    if chunk:
        yield chunk
    if failure is not None:
        raise failure


def _read(
    file: IO[bytes], parse: Callable[[int, str], Row | None], bad_rows: BadRows
) -> Iterator[Row | None]:
    number = 0
    for line in split_lines(skip_mark(_read_blocks(file, bad_rows.source))):
        if not isinstance(line, bytes):  # a pause: there is no limit of a line's length
            yield None
            continue
        number += 1
        try:
            row = parse(number, decode_line(line))
        except BadLineError as error:
            bad_rows.add(number, str(error))
        else:
            if row is not None:
                yield row


def _read_blocks(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield blocks of bytes, and an empty block before waiting for more."""
    try:
        pauses = not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # not a file of the operating system
        pauses = False
    try:
        yield from _read_ahead(file) if pauses else iter(partial(file.read, _BLOCK_BYTES), b"")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error


def _read_ahead(file: IO[bytes]) -> Iterator[bytes]:
    # The next chunk is read while one is computed. So a slow input is embedded line by line, and a
    # fast one in chunks that grow until they are full.
    blocks: queue.Queue[bytes | BaseException] = queue.Queue(_BLOCKS_AHEAD)

    def fill() -> None:
        try:
            while True:
                block: Any = file.read(_BLOCK_BYTES)
                if block is None:  # another process has made the file non-blocking
                    select.select([file], [], [])
                    continue
                blocks.put(block)
                if not block:
                    return
        except BaseException as error:  # noqa: BLE001  # raised below
            blocks.put(error)

    # A daemon, since it may wait for input for ever after an error elsewhere.
    threading.Thread(target=fill, name="bge-read", daemon=True).start()
    while True:
        try:
            block = blocks.get_nowait()
        except queue.Empty:
            yield b""
            block = blocks.get()
        if isinstance(block, BaseException):
            raise block
        if not block:
            return
        yield block


def _parse_line(number: int, line: str) -> Row:
    return Row(number, line.removesuffix("\r"), f'"index": {number - 1}')


def _parse_json(number: int, line: str, *, field: str, results: Sequence[str]) -> Row | None:
    if is_blank(line):
        return None
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise BadLineError(f"has no string field {field!r}; name the right one with --field")
    text = record.pop(field)
    check_characters(text, field)
    for name in results:
        if name in record:
            raise BadLineError(f"already has a field {name!r}, which the output adds; rename it")
    try:
        # Checked before the text is embedded, since the row could not be written.
        members = json.dumps(record, allow_nan=False)[1:-1]
    except ValueError as error:
        raise BadLineError(
            "has a number beyond 1.8e308, which would be written as Infinity"
        ) from error
    except RecursionError as error:
        raise BadLineError("is nested too deeply") from error
    return Row(number, text, members)
