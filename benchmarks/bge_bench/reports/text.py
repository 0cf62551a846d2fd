"""The tables that ``bge-bench`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bge_bench.experiments.m3 import Pair
from bge_bench.experiments.parity import Row
from bge_bench.experiments.speed import MEASURES, Comparison, SideResult
from bge_runtime.bundle import Parity
from bge_runtime.system import format_table

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
    """Lay out all sides, then ours against each; struck out is who computed other vectors.

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
        "precision",
        "min cosine",
        "error/distance",
    )
    sides = (*result.baselines, result.ours)
    rows = [_struck_out_if_it_failed(side, texts) for side in sides]
    for baseline in result.comparable:
        faster = {measure: f"{result.ratio(baseline, measure):.2f}x" for measure in MEASURES}
        memory = baseline.peak_memory_bytes / result.ours.peak_memory_bytes
        rows.append(
            [
                f"times better than {baseline.name}",
                faster["corpus_s"],
                faster["corpus_s"],
                *(faster[measure] for measure in MEASURES[1:]),
                f"{memory:.2f}x",
                *[""] * 3,
            ]
        )
    notes = [f"{side.name}: {side.in_force}" for side in sides]
    rounds = len(result.ours.corpus_s)
    notes.append(f"Medians of {rounds} round(s); ratios are taken within a round.")
    notes.append(
        "Cosine, and error by distance between texts, are to the vectors of "
        f"{result.reference} ({result.reference_in_force})."
    )
    notes += busy_notes(busy_percent)
    notes += [
        f"FAIL: {side.name} is struck out, since its vectors are not the reference's within the "
        f"tolerance of {side.precision}: {'; '.join(side.failures)}"
        for side in sides
        if side.failures
    ]
    return "\n".join([format_table([header, *rows]), "", *notes])


def pair_table(pairs: Sequence[Pair], *, busy_percent: float) -> str:
    """Lay out the two sides of each ratio, and how far their results are apart."""
    header = ("", "", "", "against", "", "times faster", "difference")
    rows = [
        (
            pair.what,
            pair.names[0],
            f"{statistics.median(pair.mine):.3f} s",
            pair.names[1],
            f"{statistics.median(pair.other):.3f} s",
            f"{pair.ratio:.2f}x",
            f"{pair.largest_difference:.1e}",
        )
        for pair in pairs
    ]
    return "\n".join([format_table([header, *rows]), *busy_notes(busy_percent)])


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


def _struck_out_if_it_failed(side: SideResult, texts: int) -> list[str]:
    cells = {measure: _FORMATS[measure].format(side.median(measure)) for measure in MEASURES}
    row = [
        side.name,
        cells["corpus_s"],
        f"{texts / side.median('corpus_s'):.1f}",
        *(cells[measure] for measure in MEASURES[1:]),
        f"{side.peak_memory_bytes / 1e6:,.0f} MB",
        side.precision,
        f"{side.parity.min_cosine:.7f}",
        f"{side.parity.error_share:.1e}",
    ]
    # Marked in characters, since a terminal's strike-through is lost in a file.
    return [f"~~{cell}~~" for cell in row] if side.failures else row
