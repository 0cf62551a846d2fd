"""The tables that ``bge-bench`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bge_bench.experiments.m3 import Pair
from bge_bench.experiments.parity import Row
from bge_bench.experiments.speed import MEASURES, Comparison, SystemResult
from bge_bench.systems.outputs import AnyParity
from bge_runtime.bundle import Parity, ScoreParity
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
        *_figures(rows[0].parity),
        "",
    )
    lines = [
        (row.call, row.info.variant, row.reference, *_figures(row.parity).values(), verdict)
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
        texts: Number of texts in the corpus, or pairs.
        busy_percent: CPU usage of other programs before the measurement.
    """
    reranks = isinstance(result.ours.parity, ScoreParity)
    unit, outputs = ("pairs", "scores") if reranks else ("texts", "vectors")
    header = (
        "",
        f"{texts} {unit}",
        f"{unit}/s",
        "query p50",
        "query p95",
        "import to vector",
        "process",
        "memory",
        "precision",
        *_short_figures(result.ours.parity),
    )
    systems = (*result.baselines, result.ours)
    rows = [_system_row(system, texts, void=result.is_void(system)) for system in systems]
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
    figures = "Ranks and difference" if reranks else "Cosine, and error by distance between texts,"
    notes.append(
        f"{figures} are to the {outputs} of {result.reference} ({result.reference_in_force})."
    )
    notes += busy_notes(busy_percent)
    notes += [
        f"FAIL: {system.name} is struck out, since its {outputs} are not the reference's within "
        f"the tolerance of {system.precision}: {'; '.join(system.failures)}"
        if result.is_void(system)
        else f"{system.name} misses what {system.precision} is held to: "
        f"{'; '.join(system.failures)}"
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


def _figures(parity: AnyParity) -> dict[str, str]:
    """Return all figures of a parity by their headings."""
    if isinstance(parity, Parity):
        return {
            "texts": str(parity.texts),
            "min cosine": f"{parity.min_cosine:.7f}",
            "mean cosine": f"{parity.mean_cosine:.7f}",
            "max difference": f"{parity.max_error:.1e}",
            "error/distance": f"{parity.error_share:.1e}",
        }
    return {
        "pairs": str(parity.pairs),
        "rank correlation": f"{parity.rank_correlation:.5f}",
        "max difference": f"{parity.max_error:.1e}",
        "error/difference": f"{parity.error_share:.1e}",
    }


def _short_figures(parity: AnyParity) -> dict[str, str]:
    """Return the two figures of a table of speed."""
    names = ("min cosine", "error/distance", "rank correlation", "max difference")
    chosen = names[:2] if isinstance(parity, Parity) else names[2:]
    return {name: _figures(parity)[name] for name in chosen}


def _system_row(system: SystemResult, texts: int, *, void: bool) -> list[str]:
    cells = {measure: _FORMATS[measure].format(system.median(measure)) for measure in MEASURES}
    row = [
        system.name,
        cells["corpus_s"],
        f"{texts / system.median('corpus_s'):.1f}",
        *(cells[measure] for measure in MEASURES[1:]),
        f"{system.peak_memory_bytes / 1e6:,.0f} MB",
        system.precision,
        *_short_figures(system.parity).values(),
    ]
    # Marked in characters, since a terminal's strike-through is lost in a file.
    return [f"~~{cell}~~" for cell in row] if void else row
