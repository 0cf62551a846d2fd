"""The table that ``bge-bench retrieval`` prints."""

from __future__ import annotations

from bge_bench.experiments.retrieval import SCORE_LIMITS, RetrievalResult, SideScores
from bge_runtime.system import format_table


def retrieval_table(result: RetrievalResult) -> str:
    """Lay out a line for each score: PyTorch's, then each side's and its difference to that."""
    first, *_ = result.sides
    header = ["task", "score", result.reference, *(_heading(side) for side in result.sides)]
    rows = [
        [
            task,
            name,
            f"{found.reference:.5f}",
            *(_cell(side, task, name) for side in result.sides),
        ]
        for task, scores in first.scores.items()
        for name, found in scores.items()
    ]
    notes = [f"{result.reference} is {result.reference_in_force}"]
    notes += [f"{_heading(side)} is {side.in_force}" for side in result.sides]
    notes.append("In brackets: questions whose own score is higher and lower than PyTorch's.")
    notes += [
        f"{side.precision} has no limit, and is not judged."
        for side in result.sides
        if side.precision not in SCORE_LIMITS
    ]
    notes += [f"FAIL: {_heading(side)}, {why}" for side in result.sides for why in side.failures]
    return "\n".join([format_table([header, *rows]), "", *notes])


def _heading(side: SideScores) -> str:
    """Say how it was asked for; where that leaves it open, what was chosen."""
    asked = ", ".join(side.asked)
    return asked if side.precision in side.asked else f"{asked} ({side.precision})"


def _cell(side: SideScores, task: str, name: str) -> str:
    found = side.scores[task][name]
    changed = f" ({found.better}/{found.worse})" if found.better or found.worse else ""
    return f"{found.score:.5f} {found.difference:+.5f}{changed}"
