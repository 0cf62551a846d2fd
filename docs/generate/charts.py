"""The charts of README and documentation, from raw files that are named in `sources`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bge_bench.reports.plots import (
    Panel,
    latency_figure,
    name_of,
    rows_in,
    sample_rate,
    serving_figure,
    throughput_figure,
)
from bge_bench.reports.rows import failures
from bge_bench.reports.style import INK, MUTED, OURS, THEIRS, styled, write_svg
from docs.generate import sources


def write_charts(folder: Path) -> list[Path]:
    """Write every chart into a folder, and return the files."""
    read = sources.read
    panels = [(precision, read(name)) for precision, name in sources.THROUGHPUT.items()]
    latency = [(precision, read(name)) for precision, name in sources.LATENCY.items()]
    figures: dict[str, Callable[[], Figure]] = {
        "throughput": lambda: bars_figure(panels),
        "throughput-fidelity": lambda: throughput_figure(panels),
        "latency-length": lambda: latency_figure(latency),
        "serving-load": lambda: serving_figure([read(name) for name in sources.SERVING]),
    }
    files = []
    for name, draw in figures.items():
        with styled(name):
            figure = draw()
            files.append(folder / f"{name}.svg")
            write_svg(figure, files[-1])
            plt.close(figure)
    return files


def bars_figure(panels: Sequence[Panel]) -> Figure:
    """Return a figure of texts per second and the error of all systems, by precision."""
    groups = [
        (precision, sorted(rows_in((precision, document)), key=_rate_in(document), reverse=True),
         document)
        for precision, document in panels
    ]  # fmt: skip
    lines = sum(len(rows) + 1.3 for _, rows, _ in groups)
    figure: Figure
    figure, axes = plt.subplots(figsize=(7.2, 0.215 * (lines + 1)))
    figure.subplots_adjust(left=0.31, right=0.86, bottom=0.01, top=0.99)
    fastest = max(_rate_in(document)(row) for _, rows, document in groups for row in rows)
    y = 0.0
    for precision, rows, document in groups:
        axes.text(-0.025 * fastest, y, precision, weight="bold", ha="right", va="center", size=10)
        if y == 0:
            axes.text(0, y, "texts per second", color=MUTED, va="center")
            axes.text(1.28 * fastest, y, "error", color=MUTED, va="center", ha="right")
        for row in rows:
            y += 1
            rate = _rate_in(document)(row)
            colour = OURS if row["ours"] else THEIRS
            weight = "bold" if row["ours"] else "normal"
            axes.barh(y, rate, height=0.72, color=colour, linewidth=0)
            ink = OURS if row["ours"] else INK
            axes.text(-0.025 * fastest, y, name_of(row), ha="right", va="center", color=ink,
                      weight=weight)  # fmt: skip
            axes.text(rate + 0.012 * fastest, y, f"{rate:.0f}", va="center", color=ink,
                      weight=weight)  # fmt: skip
            share = row["parity"]["error_share"]
            error = f"{100 * share:.1f} %" if share > 0.0005 else "0"
            axes.text(1.28 * fastest, y, error, va="center", ha="right", color=MUTED)
            if failures(row):
                axes.text(1.285 * fastest, y, "†", va="center", color=MUTED)
        y += 1.3
    if any(failures(row) for _, rows, _ in groups for row in rows):
        note = "† misses the tolerance that its precision is held to"
        axes.text(1.3 * fastest, y - 0.1, note, va="center", ha="right", color=MUTED, size=8)
        y += 0.9
    axes.set_ylim(y - 0.6, -0.7)
    axes.set_xlim(0, 1.15 * fastest)
    axes.axis("off")
    return figure


def _rate_in(document: Any) -> Callable[[Any], float]:
    return partial(sample_rate, document)
