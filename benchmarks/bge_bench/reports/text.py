"""The tables that ``bge-bench`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bge_bench.experiments.m3 import Pair
from bge_bench.experiments.parity import Row
from bge_bench.experiments.speed import MEASURES, Comparison, SystemResult
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
"""CPU usage by other programs above which times are unreliable."""


def parity_table(rows: Sequence[Row]) -> str:
    """Return a table of comparisons, then what was in force and what failed."""
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
    """Return a table of all systems and ratios; failed systems are struck out.

    Args:
        result: The measurements.
        texts: Number of texts in the corpus.
        busy_percent: CPU usage of other programs before the measurement.
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
    systems = (*result.baselines, result.ours)
    rows = [_struck_out_if_it_failed(system, texts) for system in systems]
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
    notes = [f"{system.name}: {system.in_force}" for system in systems]
    rounds = len(result.ours.corpus_s)
    notes.append(f"Medians of {rounds} round(s); ratios are taken within a round.")
    notes.append(
        "Cosine, and error by distance between texts, are to the vectors of "
        f"{result.reference} ({result.reference_in_force})."
    )
    notes += busy_notes(busy_percent)
    notes += [
        f"FAIL: {system.name} is struck out, since its vectors are not the reference's within the "
        f"tolerance of {system.precision}: {'; '.join(system.failures)}"
        for system in systems
        if system.failures
    ]
    return "\n".join([format_table([header, *rows]), "", *notes])


def pair_table(pairs: Sequence[Pair], *, busy_percent: float) -> str:
    """Return a table of pairs, with their ratio and the difference of their results."""
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
    """Return a warning if other programs were running, else an empty list."""
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


def _struck_out_if_it_failed(system: SystemResult, texts: int) -> list[str]:
    cells = {measure: _FORMATS[measure].format(system.median(measure)) for measure in MEASURES}
    row = [
        system.name,
        cells["corpus_s"],
        f"{texts / system.median('corpus_s'):.1f}",
        *(cells[measure] for measure in MEASURES[1:]),
        f"{system.peak_memory_bytes / 1e6:,.0f} MB",
        system.precision,
        f"{system.parity.min_cosine:.7f}",
        f"{system.parity.error_share:.1e}",
    ]
    # Marked in characters, since a terminal's strike-through is lost in a file.
    return [f"~~{cell}~~" for cell in row] if system.failures else row
