"""What the tables of all documents share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bge_runtime.bundle import Parity

Document = Mapping[str, Any]
Rows = list[list[str]]


def failures(row: Document) -> list[str]:
    """Return the limits that a candidate's vectors miss, if they were compared."""
    if "parity" not in row:
        return []
    return Parity.from_json(row["parity"]).failures(row["precision"])


def struck(cells: Sequence[str]) -> list[str]:
    """Return cells that are struck out in Markdown."""
    return [f"~~{cell}~~" if cell else "" for cell in cells]
