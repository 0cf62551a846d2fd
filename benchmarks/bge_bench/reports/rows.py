"""What the tables of all documents share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bge_bench.systems.outputs import is_void
from bge_runtime.bundle import Parity, parse_parity

Document = Mapping[str, Any]
Rows = list[list[str]]

MISSED = "†"
"""Mark of a baseline that misses a limit and is shown all the same."""


def failures(row: Document) -> list[str]:
    """Return the limits that a candidate's vectors miss, if they were compared."""
    if "parity" not in row:
        return []
    return parse_parity(row["parity"]).failures(row["precision"])


def is_struck(row: Document) -> bool:
    """Return whether a candidate is struck out, and compared with nobody."""
    if "parity" not in row:
        return False
    return is_void(parse_parity(row["parity"]), row["precision"], ours=row["ours"])


def parity_heading(document: Document) -> list[str]:
    """Return the headings of the figures that say how near to the reference candidates are."""
    rows = document["rows"]
    if not all("parity" in row for row in rows):  # as in older documents
        return []
    of_vectors = isinstance(parse_parity(rows[0]["parity"]), Parity)
    return ["min cosine", "error/distance"] if of_vectors else ["largest error", "rank correlation"]


def parity_cells(row: Document) -> list[str]:
    """Return the figures under `parity_heading`."""
    parity = parse_parity(row["parity"])
    if isinstance(parity, Parity):
        missed = f" {MISSED}" if parity.failures(row["precision"]) and not is_struck(row) else ""
        return [f"{parity.min_cosine:.6f}{missed}", f"{parity.error_share:.1%}"]
    return [f"{parity.max_error:.1e}", f"{parity.rank_correlation:.4f}"]


def struck(cells: Sequence[str]) -> list[str]:
    """Return cells that are struck out in Markdown."""
    return [f"~~{cell}~~" if cell else "" for cell in cells]
