"""Lines of text and of JSON, which ``bge-embed`` reads by the same rules everywhere."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn


class BadLineError(Exception):
    """A line cannot be read. The message continues "line 3"."""


class LongLine(NamedTuple):
    """Stands for a line that is longer than allowed, and was not kept.

    Attributes:
        size_bytes: Its length.
    """

    size_bytes: int


def skip_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield blocks without the byte order mark of UTF-8 that may begin them."""
    head = b""
    for block in blocks:
        head += block
        if not block:
            yield block
        elif len(head) >= len(codecs.BOM_UTF8) or not codecs.BOM_UTF8.startswith(head):
            break
    if rest := head.removeprefix(codecs.BOM_UTF8):
        yield rest
    yield from blocks


def split_lines(
    blocks: Iterator[bytes], max_bytes: int = sys.maxsize
) -> Iterator[bytes | LongLine | None]:
    """Yield lines without their newlines; yield None for an empty block, which is a pause.

    A lone carriage return does not end a line: rows must match the lines that ``wc -l`` counts.

    Args:
        blocks: The bytes of a file.
        max_bytes: A longer line is not kept in memory; a `LongLine` is yielded in its place.
    """
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        if not block:
            yield None
            continue
        *lines, rest = block.split(b"\n")
        for line in lines:
            held += len(line)
            if held > max_bytes:
                yield LongLine(held)
            else:
                yield b"".join([*parts, line]) if parts else line
            parts.clear()
            held = 0
        held += len(rest)
        if held > max_bytes:
            parts.clear()
        elif rest:
            parts.append(rest)
    if held > max_bytes:
        yield LongLine(held)
    elif held:
        yield b"".join(parts)


def decode_line(line: bytes) -> str:
    """Return the text of a line.

    Raises:
        BadLineError: If it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadLineError(
            f"is not UTF-8: its byte {error.start + 1} is 0x{line[error.start]:02X}. Convert the "
            "input, for example with iconv"
        ) from error


def is_blank(line: str) -> bool:
    """Return whether a line has nothing but what JSON calls white space."""
    return not line.strip(" \t\r\n")


def parse_json(line: str) -> Any:
    """Return the value of a line of JSON.

    Raises:
        BadLineError: If it is not JSON, nested too deeply, or has a number of too many digits.
    """
    try:
        return _decode_json(line)
    except json.JSONDecodeError as error:
        raise BadLineError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise BadLineError("is nested too deeply") from error
    except ValueError as error:
        limit = sys.get_int_max_str_digits()
        raise BadLineError(f"has a number of more than {limit} digits") from error


def check_characters(text: str, field: str) -> None:
    """Check whether the text of a JSON field can be written as UTF-8.

    Raises:
        BadLineError: If it has half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadLineError(
            f"has the lone surrogate U+{ord(text[error.start]):04X} in its field {field!r}, which "
            "is not a character"
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise BadLineError(f"is not JSON, which has no {name}")


_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).decode
