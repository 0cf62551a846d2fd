"""Which rows of the input are in which shard."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a file.

    Attributes:
        file: Number of the file.
        first: Number of the first row in the file.
        count: Number of rows.
        start: Number of the first row in the whole input.
    """

    file: int
    first: int
    count: int
    start: int


class Plan:
    """The shards of an input: each has as many of its rows, in order, whatever the files are.

    Attributes:
        rows: Rows of the input.
        shards: Number of shards; at least one.
    """

    def __init__(self, rows_of_files: Sequence[int], rows_per_shard: int) -> None:
        """Divide the rows of some files."""
        self._starts = [0, *accumulate(rows_of_files)]
        self._size = rows_per_shard
        self.rows = self._starts[-1]
        self.shards = max(1, -(-self.rows // rows_per_shard))

    def name(self, shard: int) -> str:
        """Return the name of a shard, such as ``part-00003-of-00010``."""
        return f"part-{shard:05}-of-{self.shards:05}"

    def rows_of(self, shard: int) -> int:
        """Return the number of rows of a shard."""
        start = shard * self._size
        return min(self.rows, start + self._size) - start

    def segments(self, shard: int) -> Iterator[Segment]:
        """Yield the parts of files that make a shard."""
        row, end = shard * self._size, min(self.rows, (shard + 1) * self._size)
        while row < end:
            file = self._file_of(row)
            until = min(end, self._starts[file + 1])
            yield Segment(file, row - self._starts[file], until - row, row)
            row = until

    def locate(self, row: int) -> tuple[int, int]:
        """Return the number of the file that has a row of the input, and its number there."""
        file = self._file_of(row)
        return file, row - self._starts[file]

    def _file_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1  # the last one: files may be empty


def shards_of_process(shards: int, process: str | None) -> list[int]:
    """Return the shards that one of several processes computes.

    Args:
        shards: Number of shards.
        process: ``"i/n"``: the i-th of n processes, from 1. None for the only one.

    Raises:
        ValueError: If it is not of that form.
    """
    if process is None:
        return list(range(shards))
    found = re.fullmatch(r"(\d+)/(\d+)", process)
    number, of = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= of:
        raise ValueError(
            f"shard={process!r} is not the number of a process and how many there are, such as "
            "'1/4' for the first of four"
        )
    return list(range(number - 1, shards, of))
