"""The terminal: whether there is one, and tables of plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def on_terminal() -> bool:
    """Return whether standard error is a terminal. A service may have no standard error."""
    return sys.stderr is not None and sys.stderr.isatty()


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns. The first row is the header.

    A column is right-aligned if all its cells below the header start with a digit or a minus.

    Args:
        rows: Cells, the same number in each row.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(cell.lstrip("-")[:1].isdigit() for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    )
