"""Compute the rows that a model accepts, and report the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from bge_runtime.cli.streams.input import AnyRow, BadRows
from bge_runtime.errors import NotFiniteError

Result = TypeVar("Result")


def compute_rows(
    rows: Sequence[AnyRow], compute: Callable[[Sequence[AnyRow]], Result], bad_rows: BadRows
) -> Iterator[tuple[Sequence[AnyRow], Result]]:
    """Compute rows, and report those that the model rejects.

    The model's error names no row, so the rows are halved until the bad one is found.

    Args:
        rows: Rows to compute.
        compute: Returns the result of rows.
        bad_rows: Receives the rows that are rejected.

    Returns:
        Rows with their results, in the order of the input.
    """
    try:
        result = compute(rows)
    except (ValueError, NotFiniteError) as error:
        if len(rows) == 1:
            bad_rows.add(rows[0].line, f"cannot be {bad_rows.done}: {error}")
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            yield from compute_rows(half, compute, bad_rows)
        return
    yield rows, result
