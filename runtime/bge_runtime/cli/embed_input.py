"""What ``bge-embed`` reads: lines of text or of JSON, as they come, and what is wrong with them."""

from __future__ import annotations

import codecs
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
from typing import IO, Any, NamedTuple, NoReturn

import click

from bge_runtime.errors import BgeError

_BLOCK_BYTES = 1 << 16
"""Bytes that are read at a time: what a pipe holds on Linux."""

_BLOCKS_AHEAD = 256
"""Blocks of a pipe that are read while texts are embedded."""

_BAD_ROWS_TOLD = 20
"""Bad rows that are told one by one."""


class InputError(BgeError):
    """The input cannot be read as asked."""


class Row(NamedTuple):
    """A text, and where it came from.

    Attributes:
        line: Number of its line, from 1.
        text: What is embedded.
        members: What goes with it into JSONL: members of a JSON object, without the braces.
    """

    line: int
    text: str
    members: str


class _BadRowError(Exception):
    """A line cannot be embedded; the message goes on from "line 3"."""


class BadRows:
    """What is done about rows that cannot be embedded: the first is an error, or all are skipped.

    Attributes:
        source: Name of the input, for errors.
        count: Rows skipped so far.
    """

    def __init__(self, source: str, *, skip: bool) -> None:
        """Prepare for bad rows of an input."""
        self.source = source
        self._skip = skip
        self.count = 0

    def add(self, line: int, problem: str) -> None:
        """Tell of a bad row.

        Args:
            line: Number of the line.
            problem: What is wrong with it, in words that go on from "line 3".

        Raises:
            InputError: If bad rows are not skipped.
        """
        message = f"{self.source}, line {line} {problem}"
        if not self._skip:
            raise InputError(message)
        self.count += 1
        if self.count <= _BAD_ROWS_TOLD:
            click.echo(f"bge-embed: skipped: {message}", err=True)
        elif self.count == _BAD_ROWS_TOLD + 1:
            click.echo("bge-embed: further skipped lines are only counted", err=True)

    def summarize(self, *, embedded: int) -> None:
        """Tell how many rows were skipped, beside those that were embedded.

        Raises:
            InputError: If no other is left, as with the wrong field's name.
        """
        if not self.count:
            return
        lines = "line" if self.count == 1 else "lines"
        click.echo(f"bge-embed: {self.count} {lines} skipped, {embedded} embedded", err=True)
        if not embedded:
            raise InputError(f"no line of {self.source} could be embedded")


@contextmanager
def open_input(source: str) -> Iterator[IO[bytes]]:
    """Open a file, or standard input for ``-``, without a buffer.

    Raises:
        InputError: If it cannot be opened.
    """
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; name an INPUT file")
        # Without its buffer, whose lock a thread that waits for input would hold to the end.
        yield getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        return
    try:
        file = open(source, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error
    with file:
        yield file


def read_lines(file: IO[bytes], bad_rows: BadRows) -> Iterator[Row | None]:
    """Read texts, one a line; None where the input pauses."""
    return _read(file, _parse_line, bad_rows)


def read_jsonl(
    file: IO[bytes], field: str, results: Sequence[str], bad_rows: BadRows
) -> Iterator[Row | None]:
    """Read objects, one a line, of which one field is the text; None where the input pauses.

    Args:
        file: The input.
        field: Name of the field.
        results: Names of fields that are added to the object later.
        bad_rows: Told of lines that are something else.
    """
    return _read(file, partial(_parse_json, field=field, results=results), bad_rows)


def chunk_rows(
    rows: Iterator[Row | None], size: int, *, characters: int = sys.maxsize
) -> Iterator[list[Row]]:
    """Yield rows in lists, each as long as possible without waiting for input.

    Rows that were read before an error are yielded before it is raised.

    Args:
        rows: Rows, and None where the input pauses.
        size: Most rows of a list.
        characters: A list is full with so many of them, too, those of members included.
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
    for line in _split_lines(_read_blocks(file, bad_rows.source)):
        if line is None:
            yield None
            continue
        number += 1
        try:
            row = parse(number, _decode(line))
        except _BadRowError as error:
            bad_rows.add(number, str(error))
        else:
            if row is not None:
                yield row


def _read_blocks(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield what there is to read; an empty block before waiting for more."""
    try:
        pauses = not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # it is no file of the system's
        pauses = False
    try:
        yield from _read_ahead(file) if pauses else iter(partial(file.read, _BLOCK_BYTES), b"")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error


def _read_ahead(file: IO[bytes]) -> Iterator[bytes]:
    # While one chunk is computed the next one comes in: a slow input is embedded line by line, and
    # a fast one in chunks that grow until they are full.
    blocks: queue.Queue[bytes | BaseException] = queue.Queue(_BLOCKS_AHEAD)

    def fill() -> None:
        try:
            while True:
                block: Any = file.read(_BLOCK_BYTES)
                if block is None:  # set not to block, by another process that has it open
                    select.select([file], [], [])
                    continue
                blocks.put(block)
                if not block:
                    return
        except BaseException as error:  # noqa: BLE001  # whoever reads the blocks raises it
            blocks.put(error)

    # A daemon: when something else fails it may wait for input for ever.
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


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    # A lone carriage return ends no line: rows must match what `wc -l` counts.
    parts: list[bytes] = []
    mark = codecs.BOM_UTF8  # of the first line only
    for block in blocks:
        if not block:
            yield None
            continue
        *lines, rest = block.split(b"\n")
        if lines:
            lines[0] = b"".join([*parts, lines[0]]).removeprefix(mark)
            parts, mark = [], b""
            yield from lines
        parts.append(rest)
    if last := b"".join(parts).removeprefix(mark):
        yield last


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise _BadRowError(
            f"is not UTF-8: its byte {error.start + 1} is 0x{line[error.start]:02X}. Convert the "
            "input, with iconv say"
        ) from error


def _parse_line(number: int, line: str) -> Row:
    return Row(number, line.removesuffix("\r"), f'"index": {number - 1}')


def _refuse_constant(name: str) -> NoReturn:
    raise _BadRowError(f"is not JSON: {name} is no number there")


_JSON_WHITE_SPACE = " \t\r\n"

_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


def _parse_json(number: int, line: str, *, field: str, results: Sequence[str]) -> Row | None:
    if not line.strip(_JSON_WHITE_SPACE):
        return None
    try:
        record: Any = _decode_json(line)
    except json.JSONDecodeError as error:
        raise _BadRowError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise _BadRowError("is nested too deeply") from error
    except ValueError as error:
        limit = sys.get_int_max_str_digits()
        raise _BadRowError(f"has a number of more than {limit} digits") from error
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise _BadRowError(f"has no string field {field!r}; name the right one with --field")
    text = record.pop(field)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _BadRowError(
            f"has the lone surrogate U+{ord(text[error.start]):04X} in its field {field!r}, which "
            "is half a character"
        ) from error
    for name in results:
        if name in record:
            raise _BadRowError(f"has a field {name!r} already, where a result is to go; rename it")
    try:
        # Now rather than with the result: what cannot be written is not computed.
        members = json.dumps(record, allow_nan=False)[1:-1]
    except ValueError as error:
        raise _BadRowError(
            "has a number beyond 1.8e308, which would come out as Infinity"
        ) from error
    except RecursionError as error:
        raise _BadRowError("is nested too deeply") from error
    return Row(number, text, members)
