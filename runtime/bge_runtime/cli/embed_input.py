"""The input of ``bge-embed``: rows of text or JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import IO, NamedTuple

from bge_runtime.cli.streams.input import BadRows, format_members, read_rows
from bge_runtime.lines import BadLineError, check_characters, is_blank, parse_json


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

    @property
    def texts(self) -> int:
        """Number of texts: one."""
        return 1

    @property
    def characters(self) -> int:
        """Characters of the text and the other fields."""
        return len(self.text) + len(self.members)


def read_lines(file: IO[bytes], bad_rows: BadRows) -> Iterator[Row | None]:
    """Read rows with one text per line; yield None when the input pauses."""
    return read_rows(file, _parse_line, bad_rows)


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
    return read_rows(file, partial(_parse_json, field=field, results=results), bad_rows)


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
    return Row(number, text, format_members(record, results))
