"""Rows of ``bge-rerank``: a query with its passages as input, their scores as output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple

import numpy as np

from bge_runtime.cli.streams.input import BadRows, format_members, read_rows
from bge_runtime.cli.streams.output import write_all
from bge_runtime.lines import BadLineError, check_characters, is_blank, parse_json


class QueryRow(NamedTuple):
    """A query, its passages, and its line of the input.

    Attributes:
        line: Number of the line, from 1.
        query: The query.
        passages: The passages.
        is_pair: Whether the line has one ``passage`` and no list of them.
        members: Other fields for the output: members of a JSON object, without the braces.
    """

    line: int
    query: str
    passages: Sequence[str]
    is_pair: bool
    members: str

    @property
    def texts(self) -> int:
        """Number of passages, and 1 for a line without any."""
        return max(len(self.passages), 1)

    @property
    def characters(self) -> int:
        """Characters of the texts and the other fields."""
        return len(self.query) + sum(map(len, self.passages)) + len(self.members)

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """The query with each passage."""
        return ((self.query, passage) for passage in self.passages)


Write = Callable[[Sequence[QueryRow], Sequence[float]], object]
"""Writes rows. Its arguments are rows, and the scores of their pairs, one row after the other."""


def read_queries(file: IO[bytes], bad_rows: BadRows, *, ranked: bool) -> Iterator[QueryRow | None]:
    """Read rows with one JSON object per line; yield None when the input pauses.

    Args:
        file: The input.
        bad_rows: Receives the lines that cannot be scored.
        ranked: Whether the output has rankings instead of scores.
    """
    return read_rows(file, partial(_parse, ranked=ranked), bad_rows)


def _parse(number: int, line: str, *, ranked: bool) -> QueryRow | None:
    if is_blank(line):
        return None
    record = parse_json(line)
    if not isinstance(record, dict) or not isinstance(record.get("query"), str):
        raise BadLineError("has no string field 'query'")
    if ("passages" in record) == ("passage" in record):
        found = "both" if "passage" in record else "neither"
        raise BadLineError(
            f"has {found} of the fields 'passages', a list of strings, and 'passage', a string; "
            "it needs one of them"
        )
    is_pair = "passage" in record
    query = record.pop("query")
    passages = [record.pop("passage")] if is_pair else record.pop("passages")
    check_characters(query, "query")
    _check_passages(passages, is_pair=is_pair)
    result = "score" if is_pair else "ranking" if ranked else "scores"
    return QueryRow(number, query, passages, is_pair, format_members(record, [result]))


def _check_passages(passages: object, *, is_pair: bool) -> None:
    if not isinstance(passages, list):
        raise BadLineError("has a field 'passages' that is no list of strings")
    for index, passage in enumerate(passages):
        name = "passage" if is_pair else f"passages[{index}]"
        if not isinstance(passage, str):
            raise BadLineError(f"has no string in its field {name!r}")
        check_characters(passage, name)


def jsonl_formats(top_k: int | None) -> Mapping[str, Callable[[IO[bytes]], Write]]:
    """Return the formats of the output, by the suffix of a file.

    Args:
        top_k: Most passages of a ranking; None to write the scores of all in their order.
    """

    def writer(file: IO[bytes]) -> Write:
        def write(rows: Sequence[QueryRow], scores: Sequence[float]) -> None:
            remaining = iter(scores)
            for row in rows:
                own = [next(remaining) for _ in row.passages]
                members = ", ".join(filter(None, (row.members, _format_scores(row, own, top_k))))
                write_all(file, f"{{{members}}}\n".encode())

        return write

    return dict.fromkeys((".jsonl", ".ndjson"), writer)


def _format_scores(row: QueryRow, scores: Sequence[float], top_k: int | None) -> str:
    texts = [_format_score(score) for score in scores]
    if row.is_pair:
        return f'"score": {texts[0]}'
    if top_k is None:
        return f'"scores": [{", ".join(texts)}]'
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_k]
    ranking = ", ".join(f'{{"index": {index}, "score": {texts[index]}}}' for index in best)
    return f'"ranking": [{ranking}]'


def _format_score(score: float) -> str:
    """Return the shortest text that is read as the same float32, or float64 if it is none."""
    single = np.float32(score)
    return str(single if float(single) == score else score)
