"""What the tables of all documents share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bge_runtime.bundle import Parity, parse_parity

Document = Mapping[str, Any]
Rows = list[list[str]]


def failures(row: Document) -> list[str]:
    """Return the limits that a candidate's vectors miss, if they were compared."""
    if "parity" not in row:
        return []
    return parse_parity(row["parity"]).failures(row["precision"])


def parity_heading(document: Document) -> list[str]:
    """Return the headings of the figures that say how near to the reference candidates are."""
    rows = document["rows"]
    if not all("parity" in row for row in rows):  # as in older documents
        return []
    of_vectors = isinstance(parse_parity(rows[0]["parity"]), Parity)
    return ["min cosine"] if of_vectors else ["largest error", "rank correlation"]


def parity_cells(row: Document) -> list[str]:
    """Return the figures under `parity_heading`."""
    parity = parse_parity(row["parity"])
    if isinstance(parity, Parity):
        return [f"{parity.min_cosine:.6f}"]
    return [f"{parity.max_error:.1e}", f"{parity.rank_correlation:.4f}"]


def struck(cells: Sequence[str]) -> list[str]:
    """Return cells that are struck out in Markdown."""
    return [f"~~{cell}~~" if cell else "" for cell in cells]
