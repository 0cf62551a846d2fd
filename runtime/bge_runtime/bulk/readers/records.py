"""Splits CSV and TSV into records, and says where each begins."""

from __future__ import annotations

import codecs
import csv
from collections import deque
from collections.abc import Iterator
from itertools import chain

from bge_runtime.bulk.readers.arrays import too_large
from bge_runtime.bulk.readers.base import MAX_ROW_BYTES
from bge_runtime.lines import BadLineError, LongLine, decode_line, split_lines


class RecordStream(Iterator[tuple[list[str], int]]):
    """Yields the values of records, and their sizes in bytes. A blank line has no values.

    A record that cannot be read raises `BadLineError`, and reading can go on. It is the first line
    of what could not be read, so the lines after it are records again.

    Attributes:
        position: Byte of the file where the next record begins.
    """

    def __init__(self, blocks: Iterator[bytes], delimiter: str, *, position: int = 0) -> None:
        """Read records from some position of a file."""
        if not position:  # a byte order mark may begin a file
            first = next(blocks, b"")
            if first.startswith(codecs.BOM_UTF8):
                position = len(codecs.BOM_UTF8)
            blocks = chain([first[position:]], blocks)
        self.position = position
        # The limit of csv holds for the whole process, and is only ever raised here.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
        self._delimiter = delimiter
        # Texts in TSV often begin with a quote that nothing closes; values have no tabs.
        self._of_lines = delimiter == "\t"
        self._feed = _Feed(blocks)
        self._reader = csv.reader(self._feed, delimiter=delimiter, strict=True)

    def __next__(self) -> tuple[list[str], int]:
        feed = self._feed
        line = feed.peek()
        if isinstance(line, bytes) and (
            self._of_lines or (b'"' not in line and b"\r" not in line[:-1])
        ):
            # Most lines: split twice as fast as by csv, with the same result.
            feed.drop()
            size_bytes = len(line) + 1
            self.position += size_bytes
            text = decode_line(line).removesuffix("\r")
            values = text.split(self._delimiter) if text else []
            return [_unquote(value) for value in values] if '"' in text else values, size_bytes
        feed.start_record()
        problem = None
        values = []
        try:
            values = next(self._reader)
        except csv.Error as error:
            problem = _reason(str(error))
        except BadLineError as error:
            problem = str(error)
        if problem is not None:
            feed.give_back()
        size_bytes = feed.taken_bytes
        self.position += size_bytes
        if problem or feed.problem:
            raise BadLineError(problem or feed.problem)
        return values, size_bytes

    def skip(self) -> bool:
        """Skip a record, and return whether there was one."""
        line = self._feed.peek()
        if isinstance(line, bytes) and (
            self._of_lines or b'"' not in line
        ):  # most lines: not parsed, to be fast
            self._feed.drop()
            self.position += len(line) + 1
            return True
        try:
            next(self)
        except StopIteration:
            return False
        except BadLineError:
            pass
        return True


class _Feed(Iterator[str]):
    """Gives lines to ``csv``, and takes back those after a record's first one.

    Attributes:
        problem: What is wrong with the characters of the record, if anything.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._lines = split_lines(blocks, MAX_ROW_BYTES)
        self._waiting: deque[bytes | LongLine] = deque()
        self._taken: list[bytes | LongLine] = []
        self.taken_bytes = 0
        self.problem: str | None = None

    def start_record(self) -> None:
        self._taken.clear()
        self.taken_bytes = 0
        self.problem = None

    def __next__(self) -> str:
        line = self.peek()
        if line is None:
            raise StopIteration
        self.drop()
        self._taken.append(line)
        self.taken_bytes += _size(line)
        if isinstance(line, LongLine) or self.taken_bytes > MAX_ROW_BYTES:
            reason = too_large(self.taken_bytes)
            raise BadLineError(
                reason if len(self._taken) == 1 else f"{reason}, or a quote is never closed"
            )
        try:
            return decode_line(line) + "\n"
        except BadLineError as error:
            self.problem = self.problem or str(error)
            return line.decode(errors="replace") + "\n"

    def peek(self) -> bytes | LongLine | None:
        """Return the next line without taking it; None at the end."""
        while not self._waiting:
            try:
                line = next(self._lines)
            except StopIteration:
                return None
            if line is not None:
                self._waiting.append(line)
        return self._waiting[0]

    def drop(self) -> None:
        """Take the line that `peek` returned."""
        self._waiting.popleft()

    def give_back(self) -> None:
        """Take back all lines of the record but its first one."""
        self._waiting.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]
        self.taken_bytes = sum(map(_size, self._taken))


def _unquote(value: str) -> str:
    """Return a value of TSV without the quotes around it, whose own quotes are doubled."""
    inner = value[1:-1].replace('""', "")
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner
    return value[1:-1].replace('""', '"') if quoted else value


def _size(line: bytes | LongLine) -> int:
    """Return the bytes of a line with its newline."""
    return (line.size_bytes if isinstance(line, LongLine) else len(line)) + 1


def _reason(error: str) -> str:
    if "unexpected end" in error:
        return "has a quote that is never closed"
    if "new-line" in error:
        return "has a carriage return outside of quotes"
    return f"has quotes in a wrong place: {error}"
