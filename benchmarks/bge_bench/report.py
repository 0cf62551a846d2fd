"""The tables that ``bge-bench`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bge_bench.parity import Row
from bge_bench.speed import MEASURES, Comparison, SideResult
from bge_runtime.parity import Parity
from bge_runtime.table import format_table

_FORMATS = {
    "corpus_s": "{:.2f} s",
    "query_p50_ms": "{:.1f} ms",
    "query_p95_ms": "{:.1f} ms",
    "first_vector_s": "{:.2f} s",
    "process_s": "{:.2f} s",
}

_QUIET_PERCENT = 10.0
"""More load than this by others, and times are not to be trusted."""


def parity_table(rows: Sequence[Row]) -> str:
    """Lay out one line a comparison, then what was in force and what failed."""
    header = (
        "call",
        "variant",
        "reference",
        "texts",
        "min cosine",
        "mean cosine",
        "max difference",
        "error/distance",
        "",
    )
    lines = [
        (row.call, row.info.variant, row.reference, *_figures(row.parity), verdict)
        for row in rows
        for verdict in ["FAIL" if row.failures else "pass"]
    ]
    notes = dict.fromkeys(
        [
            *(f"{row.info.variant} is {row.info}" for row in rows),
            *(f"{row.reference} is {row.reference_in_force}" for row in rows),
        ]
    )
    failures = [
        f"FAIL: {row.call}, {row.info.variant}, against {row.reference}: {'; '.join(row.failures)}"
        for row in rows
        if row.failures
    ]
    return "\n".join([format_table([header, *lines]), "", *notes, *failures])


def speed_table(result: Comparison, *, texts: int, busy_percent: float) -> str:
    """Lay out both sides and their ratio; ours is struck out if it computed other vectors.

    Args:
        result: What was measured.
        texts: Number of texts in the corpus.
        busy_percent: How busy others kept the machine before it was measured.
    """
    header = (
        "",
        f"{texts} texts",
        "texts/s",
        "query p50",
        "query p95",
        "import to vector",
        "process",
        "memory",
        "min cosine",
        "error/distance",
    )
    parity = result.parity
    ours = [
        *_times(result.ours, texts),
        f"{parity.min_cosine:.7f}",
        f"{parity.error_share:.1e}",
    ]
    rows = [[result.baseline.name, *_times(result.baseline, texts), "reference", "reference"]]
    if result.failures:
        # Marked in characters, since a terminal's strike-through is lost in a file.
        rows.append([f"~~{result.ours.name}~~", *(f"~~{cell}~~" for cell in ours)])
    else:
        rows.append([result.ours.name, *ours])
        faster = {measure: f"{result.ratio(measure):.2f}x" for measure in MEASURES}
        memory = result.baseline.peak_memory_bytes / result.ours.peak_memory_bytes
        rows.append(
            [
                "times better",
                faster["corpus_s"],
                faster["corpus_s"],
                *(faster[measure] for measure in MEASURES[1:]),
                f"{memory:.2f}x",
                "",
                "",
            ]
        )
    notes = [f"{side.name}: {side.in_force}" for side in (result.baseline, result.ours)]
    rounds = len(result.ours.corpus_s)
    notes.append(f"Medians of {rounds} round(s); ratios are taken within a round.")
    notes += busy_notes(busy_percent)
    if result.failures:
        notes.append(
            f"FAIL: struck out, since its vectors are not the baseline's: "
            f"{'; '.join(result.failures)}"
        )
    return "\n".join([format_table([header, *rows]), "", *notes])


def busy_notes(busy_percent: float) -> list[str]:
    """Say that times are not to be trusted, if other programs were running."""
    if busy_percent <= _QUIET_PERCENT:
        return []
    note = (
        f"Other programs kept {busy_percent:.0f} % of this machine busy before the run began; "
        "repeat it when they do not."
    )
    return [note]


def _figures(parity: Parity) -> tuple[str, str, str, str, str]:
    return (
        str(parity.texts),
        f"{parity.min_cosine:.7f}",
        f"{parity.mean_cosine:.7f}",
        f"{parity.max_error:.1e}",
        f"{parity.error_share:.1e}",
    )


def _times(side: SideResult, texts: int) -> list[str]:
    medians = {measure: statistics.median(side.series(measure)) for measure in MEASURES}
    cells = {measure: _FORMATS[measure].format(value) for measure, value in medians.items()}
    return [
        cells["corpus_s"],
        f"{texts / medians['corpus_s']:.1f}",
        *(cells[measure] for measure in MEASURES[1:]),
        f"{side.peak_memory_bytes / 1e6:,.0f} MB",
    ]
