"""The input of commands: read rows of lines as they arrive, and report bad ones."""

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
from typing import IO, Any, Protocol, TypeVar

import click

from bge_runtime.errors import BgeError
from bge_runtime.lines import BadLineError, decode_line, skip_mark, split_lines

_BLOCK_BYTES = 1 << 16
"""Bytes that are read at a time: the capacity of a pipe on Linux."""

_BLOCKS_AHEAD = 256
"""Most blocks of a pipe that are read ahead while rows are computed."""

_REPORTED_BAD_ROWS = 20
"""Bad rows that are reported one by one. Further ones are only counted."""


class InputError(BgeError):
    """The input cannot be read as asked.

    Causes: options that exclude each other, a file that cannot be read, or a line that is not a
    text.

    What to do: follow the message, which names option, file and line; or pass ``--on-error skip``.
    """


class InputRow(Protocol):
    """A row of the input, which belongs to one of its lines."""

    @property
    def line(self) -> int:
        """Number of the line, from 1."""

    @property
    def texts(self) -> int:
        """Number of texts that the model computes for it."""

    @property
    def characters(self) -> int:
        """Characters that it keeps in memory."""


AnyRow = TypeVar("AnyRow", bound=InputRow)


class BadRows:
    """Handles rows that cannot be computed: the first one is an error, or all are skipped.

    Attributes:
        source: Name of the input that is read, for error messages.
        done: What the command does with a row: ``"embedded"``.
        count: Rows skipped so far.
    """

    def __init__(self, source: str, *, command: str, done: str, skip: bool) -> None:
        """Start without bad rows."""
        self.source = source
        self.done = done
        self._command = command
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
            click.echo(f"{self._command}: skipped: {message}", err=True)
        elif self.count == _REPORTED_BAD_ROWS + 1:
            click.echo(f"{self._command}: further skipped lines are not reported", err=True)

    def summarize(self, count: int) -> None:
        """Report how many rows were skipped.

        Args:
            count: Number of rows that were not.

        Raises:
            InputError: If all rows were skipped, which may mean a wrong field.
        """
        if not self.count:
            return
        lines = "line" if self.count == 1 else "lines"
        click.echo(f"{self._command}: {self.count} {lines} skipped, {count} {self.done}", err=True)
        if not count:
            raise InputError(f"no line of {self.source} could be {self.done}")


@contextmanager
def input_errors() -> Iterator[None]:
    """Raise an `InputError` for a wrong value of an option, which becomes one line."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def name_input(source: str) -> str:
    """Return how messages call an input."""
    return "standard input" if source == "-" else source


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


def chunk_rows(
    rows: Iterator[AnyRow | None], size: int, *, characters: int = sys.maxsize
) -> Iterator[list[AnyRow]]:
    """Yield lists of rows, each as long as possible without waiting for input.

    Rows that were read before an error are yielded before it is raised.

    Args:
        rows: Rows, and None when the input pauses.
        size: A list is full with this many texts.
        characters: A list is also full with this many characters.
    """
    chunk: list[AnyRow] = []
    texts = held = 0
    failure = None
    try:
        for row in rows:
            if row is not None:
                chunk.append(row)
                texts += row.texts
                held += row.characters
            full = texts >= size or held >= characters
            if chunk and (full or row is None):
                yield chunk
                chunk, texts, held = [], 0, 0
    except InputError as error:
        failure = error
    if chunk:
        yield chunk
    if failure is not None:
        raise failure


def read_rows(
    file: IO[bytes], parse: Callable[[int, str], AnyRow | None], bad_rows: BadRows
) -> Iterator[AnyRow | None]:
    """Read a row for each line; yield None when the input pauses.

    Args:
        file: The input.
        parse: Returns the row of a line, which may be none. Its arguments are the line's number
            and text. Raises a `BadLineError` for a bad line.
        bad_rows: Receives the bad lines.
    """
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


def format_members(record: dict[str, Any], results: Sequence[str]) -> str:
    """Return fields of the input as the output repeats them.

    Args:
        record: The fields.
        results: Names of fields that the output adds.

    Returns:
        Members of a JSON object, without the braces.

    Raises:
        BadLineError: If they cannot be written, or have the name of a result.
    """
    for name in results:
        if name in record:
            raise BadLineError(f"already has a field {name!r}, which the output adds; rename it")
    try:
        # Checked before the row is computed, since it could not be written.
        return json.dumps(record, allow_nan=False)[1:-1]
    except ValueError as error:
        raise BadLineError(
            "has a number beyond 1.8e308, which would be written as Infinity"
        ) from error
    except RecursionError as error:
        raise BadLineError("is nested too deeply") from error


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
