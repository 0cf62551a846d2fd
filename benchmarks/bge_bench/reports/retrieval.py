"""The table that ``bge-bench retrieval`` prints."""

from __future__ import annotations

from collections.abc import Mapping

from bge_bench.experiments.retrieval import SCORE_LIMITS, RetrievalResult, SystemScores
from bge_bench.experiments.tasks import Values
from bge_runtime.system import format_table


def retrieval_table(result: RetrievalResult, before: Mapping[str, Values] | None = None) -> str:
    """Return a table of scores: PyTorch's, then each configuration's with its difference.

    Args:
        result: The scores.
        before: By task those of the order that was reranked, if one was.
    """
    first, *_ = result.systems
    old = ["before"] if before else []
    header = [
        "task",
        "score",
        *old,
        result.reference,
        *(_heading(system) for system in result.systems),
    ]
    rows = [
        [
            task,
            name,
            *([f"{before[task][name].mean():.5f}"] if before else []),
            f"{found.reference:.5f}",
            *(_cell(system, task, name) for system in result.systems),
        ]
        for task, scores in first.scores.items()
        for name, found in scores.items()
    ]
    rows += _parity_rows(result, blank=[""] * len(old))
    notes = [f"{result.reference} is {result.reference_in_force}"]
    notes += [f"{_heading(system)} is {system.in_force}" for system in result.systems]
    if any(not system.ours for system in result.systems):
        notes.append("Baselines are not judged.")
    notes.append("In brackets: questions whose own score is higher and lower than PyTorch's.")
    notes += [
        f"{system.precision} has no limit, and is not judged."
        for system in result.systems
        if system.ours and system.precision not in SCORE_LIMITS
    ]
    notes += [
        f"FAIL: {_heading(system)}, {why}" for system in result.systems for why in system.failures
    ]
    return "\n".join([format_table([header, *rows]), "", *notes])


def _parity_rows(result: RetrievalResult, *, blank: list[str]) -> list[list[str]]:
    """Return rows that say how far outputs are from PyTorch's, for each task."""
    first, *_ = result.systems
    return [
        [
            task,
            name,
            *blank,
            "",
            *(system.parity[task].cells()[column] for system in result.systems),
        ]
        for task, parity in first.parity.items()
        for column, name in enumerate(parity.COLUMNS)
    ]


def _heading(system: SystemScores) -> str:
    """Return the requested precisions, and the one in force if it was not among them.

    Of a baseline its name.
    """
    asked = ", ".join(system.asked)
    return (
        asked
        if system.precision in system.asked or not system.ours
        else f"{asked} ({system.precision})"
    )


def _cell(system: SystemScores, task: str, name: str) -> str:
    found = system.scores[task][name]
    changed = f" ({found.better}/{found.worse})" if found.better or found.worse else ""
    return f"{found.score:.5f} {found.difference:+.5f}{changed}"
