"""Plots of the documents that ``--json`` writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bge_bench.reports.rows import Document, is_struck

_OURS, _THEIRS = "#c2410c", ("#475569", "#64748b", "#94a3b8", "#0f766e", "#6d28d9", "#1d4ed8")
_MARKERS = "osD^vPX*h<>"


def plot(document: Document, folder: Path, stem: str) -> list[Path]:
    """Draw a document as PNG and SVG.

    Args:
        document: A document that ``--json`` wrote.
        folder: Folder for the files.
        stem: Stem of their names.

    Returns:
        The files; empty for a kind without a plot.
    """
    draw = _PLOTS.get(document["kind"])
    if draw is None:
        return []
    # Without dates and random ids the same numbers give the same file.
    with mpl.rc_context({"svg.hashsalt": stem, "font.size": 9}):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        draw(axes, document)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)
        files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
        figure.savefig(files[0], dpi=150, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None})
        plt.close(figure)
    return files


def _styles(rows: Sequence[Document]) -> list[dict[str, Any]]:
    styles, theirs = [], 0
    for row, marker in zip(rows, _MARKERS * 2, strict=False):
        colour = _OURS if row["ours"] else _THEIRS[theirs % len(_THEIRS)]
        theirs += not row["ours"]
        styles.append({"label": row["label"], "color": colour, "marker": marker})
    return styles


def _throughput(axes: Axes, document: Document) -> None:
    for row, style in zip(document["rows"], _styles(document["rows"]), strict=True):
        if is_struck(row):
            continue
        part = "full" if row["full_s"] else "sample"
        rate = document[part]["tokens"] / statistics.median(row[f"{part}_s"])
        # In fp32 the distance is rounding error, so all of it is drawn at one place.
        distance = max(1 - row["parity"]["min_cosine"], 1e-7)
        axes.scatter(distance, rate, s=70 if row["ours"] else 40, zorder=3, **style)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("largest cosine distance to PyTorch in fp32 (better to the right)")
    axes.set_ylabel("tokens a second")
    axes.legend(fontsize=7)


def _latency(axes: Axes, document: Document) -> None:
    points = [
        (point["tokens"], name)
        for name, point in document["points"].items()
        if point["texts"] == 1 and name != "query"
    ]
    for row, style in zip(document["rows"], _styles(document["rows"]), strict=True):
        medians = [
            statistics.median(ms for one_round in row["ms"][name] for ms in one_round)
            for _, name in points
        ]
        axes.plot([tokens for tokens, _ in points], medians, markersize=4, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of one text")
    axes.set_ylabel("median milliseconds")
    axes.legend(fontsize=7)


def _scaling(axes: Axes, document: Document) -> None:
    sizes = [int(size) for size in document["sizes"]]
    for row, style in zip(document["rows"], _styles(document["rows"]), strict=True):
        rates = [size / statistics.median(row["seconds"][str(size)]) for size in sizes]
        axes.plot(sizes, rates, markersize=4, **style)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("texts in the corpus")
    axes.set_ylabel("texts a second")
    axes.legend(fontsize=7)


def _memory(axes: Axes, document: Document) -> None:
    for row, style in zip(document["rows"], _styles(document["rows"]), strict=True):
        held = row["held_bytes"]
        texts = [number * row["texts"] / (len(held) - 1) for number in range(len(held))]
        axes.plot(texts, [value / 1e6 for value in held], **{**style, "marker": None})
    axes.set_ylim(bottom=0)
    axes.set_xlabel("texts embedded, of 1 to 512 tokens at random")
    axes.set_ylabel("resident memory, MB")
    axes.legend(fontsize=7)


def _serve(axes: Axes, document: Document) -> None:
    for row, style in zip(document["rows"], _styles(document["rows"]), strict=True):
        loads = [row["open"][str(load)] for load in document["loads"]]
        offered = [load / 100 * row["capacity_per_s"] for load in document["loads"]]
        for name, line in (("p50_ms", "-"), ("p99_ms", "--")):
            # Where nothing was answered there is no latency.
            found = [np.nan if load[name] is None else load[name] for load in loads]
            shown = {**style, "label": f"{row['label']}, {name[:3]}", "linestyle": line}
            axes.plot(offered, found, markersize=4, **shown)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("requests a second that come at random times, one text each")
    axes.set_ylabel("milliseconds until the answer")
    axes.legend(fontsize=7)


def _overload(axes: Axes, document: Document) -> None:
    found = document["overload"]
    length = found["seconds"] / len(found["parts"])
    middles = [(number + 0.5) * length for number in range(len(found["parts"]))]
    for name, line in (("p50_ms", "-"), ("p99_ms", "--")):
        latencies = [np.nan if part[name] is None else part[name] for part in found["parts"]]
        label = f"{name[:3]} of accepted requests"
        axes.plot(middles, latencies, color=_OURS, marker="o", linestyle=line, label=label)
    held = axes.twinx()
    held.plot(
        range(1, len(found["held_bytes"]) + 1),
        [value / 1e6 for value in found["held_bytes"]],
        color=_THEIRS[0],
    )
    held.set_ylim(0, 1.3e-6 * max(found["held_bytes"], default=1e6))
    held.set_ylabel("resident memory, MB (grey)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"seconds at {found['percent']} % of the server's capacity")
    axes.set_ylabel("milliseconds until the answer")
    axes.legend(fontsize=7)


_PLOTS: Mapping[str, Callable[[Axes, Document], None]] = {
    "throughput": _throughput,
    "latency": _latency,
    "scaling": _scaling,
    "memory": _memory,
    "serve": _serve,
    "overload": _overload,
}
