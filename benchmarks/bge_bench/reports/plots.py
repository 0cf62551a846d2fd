"""Plots of the documents that ``--json`` writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bge_bench.reports.rows import Document, is_struck
from bge_bench.reports.style import (
    INK,
    MUTED,
    OURS,
    THEIRS,
    Label,
    figure_of,
    label_points,
    styled,
    write_svg,
)

_NAMES = {
    "flagembedding": "FlagEmbedding",
    "sentence-transformers-bf16": "sentence-transformers",
    "sentence-transformers-onnx": "sentence-transformers, ONNX",
    "sentence-transformers-openvino": "sentence-transformers, OpenVINO",
    "sentence-transformers-openvino held to fp32": "sentence-transformers, OpenVINO",
    "sentence-transformers-openvino-int8": "sentence-transformers, OpenVINO",
    "sentence-transformers-onnx-int8": "sentence-transformers, ONNX",
    "openvino-int8": "OpenVINO, static scales",
    "ctranslate2": "CTranslate2",
    "transformers-compiled": "torch.compile",
    "plain": "plain handler",
    "infinity ctranslate2": "infinity",
}
"""What a chart calls a system whose label differs."""

Panel = tuple[str, Document]
"""A precision, and the document whose candidates in that precision are compared."""


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
    with styled(stem):
        figure = draw(document)
        files = [folder / f"{stem}.png", folder / f"{stem}.svg"]
        figure.savefig(files[0], dpi=150, metadata={"Software": None})
        write_svg(figure, files[1])
        plt.close(figure)
    return files


def name_of(row: Document) -> str:
    """Return what a chart calls a candidate."""
    label = str(row["label"])
    return "bge-runtime" if label.startswith("bge-runtime") else _NAMES.get(label, label)


def rows_in(panel: Panel) -> list[Document]:
    """Return the candidates in a panel's precision, ours first; those struck out are left out."""
    precision, document = panel
    rows = [
        row
        for row in document["rows"]
        if row["precision"] == precision and not is_struck(row) and "one batch" not in row["label"]
    ]
    return sorted(rows, key=lambda row: not row["ours"])


def sample_rate(document: Document, row: Document) -> float:
    """Return texts per second on the sample, which all candidates ran."""
    return float(document["sample"]["texts"] / statistics.median(row["sample_s"]))


def panels_of(document: Document) -> list[Panel]:
    """Return a panel for each precision of a document, the widest first."""
    found = dict.fromkeys(row["precision"] for row in document["rows"])
    return [(each, document) for each in sorted(found, key=["fp32", "fp16", "bf16", "int8"].index)]


def throughput_figure(panels: Sequence[Panel]) -> Figure:
    """Return a figure of rate against error, a panel for each precision."""
    figure, axes = figure_of(2.3, len(panels))
    for at, panel in zip(axes, panels, strict=True):
        precision, document = panel
        labels = [
            Label(row["parity"]["error_share"], sample_rate(document, row), name_of(row),
                  ours=row["ours"])
            for row in rows_in(panel)
        ]  # fmt: skip
        at.set_title(precision)
        at.set_xlim(0, 1.9 * max(label.x for label in labels) or 1e-6)
        at.set_ylim(0, 1.12 * max(label.y for label in labels))
        at.xaxis.set_major_formatter(FuncFormatter(_percent))
        at.locator_params(axis="x", nbins=3)
        _scatter(at, labels)
        label_points(at, labels)
        at.set_ylabel(f"{document.get('unit', 'texts')} per second")
    figure.supxlabel(
        "largest error, as a share of the distance between texts (further left is closer to "
        "PyTorch)",
        fontsize=9, color=MUTED,
    )  # fmt: skip
    return figure


def _percent(value: float, _: int) -> str:
    return f"{100 * value:.4g} %"


def _scatter(axes: Axes, labels: Sequence[Label]) -> None:
    for ours, colour, size in ((False, THEIRS, 28), (True, OURS, 56)):
        points = [label for label in labels if label.ours is ours]
        axes.scatter(
            [point.x for point in points], [point.y for point in points], s=size, color=colour,
            zorder=3, linewidth=0,
        )  # fmt: skip


def latency_figure(panels: Sequence[Panel]) -> Figure:
    """Return a figure of the median latency against the length of a text, by precision."""
    figure, axes = figure_of(2.6, len(panels))
    labels = []
    for at, panel in zip(axes, panels, strict=True):
        _, document = panel
        points = {
            name: point["tokens"]
            for name, point in document["points"].items()
            if point["texts"] == 1 and name != "query"
        }
        lines = [
            (row, [float(np.median(np.concatenate(row["ms"][name]))) for name in points])
            for row in rows_in(panel)
        ]
        tokens = list(points.values())
        _lines(at, panel[0], tokens, lines)
        labels.append(
            [Label(tokens[-1], y[-1], name_of(row), ours=row["ours"]) for row, y in lines]
        )
        at.set_ylabel("ms, median")
    figure.supxlabel("tokens of one text", fontsize=9, color=MUTED)
    low, high = (pick(at.get_ylim()[side] for at in axes) for side, pick in ((0, min), (1, max)))
    for at, ends in zip(axes, labels, strict=True):
        at.set_ylim(low, high)
        label_points(at, ends, size=7.5)
    return figure


def _lines(
    axes: Axes, title: str, x: Sequence[float], lines: Sequence[tuple[Document, Sequence[float]]]
) -> None:
    """Draw a line for each candidate, on logarithmic axes, with room for labels to the right."""
    for row, y in lines:
        axes.plot(
            x, y, color=OURS if row["ours"] else THEIRS, marker="o" if row["ours"] else None,
            zorder=3 + row["ours"], linewidth=2 if row["ours"] else 1,
        )  # fmt: skip
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(min(x) * 0.8, max(x) * (max(x) / min(x)) ** 0.6)
    axes.set_xticks(x[::2], [f"{each:g}" for each in x[::2]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def serving_figure(documents: Sequence[Document]) -> Figure:
    """Return a figure of p99 against the rate under rising load, a panel for each document."""
    figure, axes = figure_of(3.0, len(documents))
    for at, document in zip(axes, documents, strict=True):
        for row in document["rows"]:
            points = [row["closed"][str(clients)] for clients in document["clients"]]
            rates = [point["texts_per_s"] for point in points]
            seconds = [point["p99_ms"] / 1000 for point in points]
            at.plot(
                rates, seconds, color=OURS if row["ours"] else THEIRS, marker="o",
                zorder=3 + row["ours"], linewidth=2 if row["ours"] else 1,
            )  # fmt: skip
            if row["ours"]:
                _name_clients(at, document["clients"], rates, seconds)
            at.annotate(
                f"{name_of(row)}\n{row['precision']}", (rates[-1], seconds[-1]), xytext=(0, 7),
                textcoords="offset points", ha="center", fontsize=8, annotation_clip=False,
                color=OURS if row["ours"] else INK,
                fontweight="bold" if row["ours"] else "normal",
            )  # fmt: skip
        at.set_title(document["model"].removesuffix("-random"))
        at.set_yscale("log")
        at.set_xlim(0, 1.25 * max(point["texts_per_s"] for row in document["rows"]
                                  for point in row["closed"].values()))  # fmt: skip
    _serving_axes(axes)
    return figure


def _name_clients(
    axes: Axes, clients: Sequence[int], rates: Sequence[float], seconds: Sequence[float]
) -> None:
    for number, rate, p99 in zip(clients, rates, seconds, strict=True):
        axes.annotate(
            f"{number} client{'s' if number > 1 else ''}", (rate, p99), xytext=(9, -11),
            textcoords="offset points", fontsize=8, color=MUTED, annotation_clip=False,
        )  # fmt: skip


def _serving_axes(axes: Sequence[Axes]) -> None:
    low, high = (pick(at.get_ylim()[side] for at in axes) for side, pick in ((0, min), (1, max)))
    for at in axes:
        at.set_ylim(low, 2.4 * high)
        at.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        at.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        at.yaxis.set_minor_locator(NullLocator())
        at.set_ylabel("p99 until the answer")
    axes[0].figure.supxlabel(
        "texts answered per second (further right is more, further down is sooner)",
        fontsize=9, color=MUTED,
    )  # fmt: skip


def _scaling(document: Document) -> Figure:
    figure, (axes,) = figure_of(3.2)
    sizes = [int(size) for size in document["sizes"]]
    labels = []
    for row in document["rows"]:
        rates = [size / statistics.median(row["seconds"][str(size)]) for size in sizes]
        axes.plot(sizes, rates, color=OURS if row["ours"] else THEIRS, marker="o")
        labels.append(Label(sizes[-1], rates[-1], name_of(row), ours=row["ours"]))
    axes.set_xscale("log")
    axes.set_xlim(right=sizes[-1] * 12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("texts in the corpus")
    axes.set_ylabel("texts per second")
    label_points(axes, labels)
    return figure


def _memory(document: Document) -> Figure:
    figure, (axes,) = figure_of(3.2)
    labels = []
    for row in document["rows"]:
        held = [value / 1e6 for value in row["held_bytes"]]
        texts = [number * row["texts"] / (len(held) - 1) for number in range(len(held))]
        axes.plot(texts, held, color=OURS if row["ours"] else THEIRS)
        labels.append(Label(texts[-1], held[-1], row["label"], ours=row["ours"]))
    axes.set_xlim(0, 1.4 * max(label.x for label in labels))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("texts embedded, of 1 to 512 tokens at random")
    axes.set_ylabel("resident memory, MB")
    label_points(axes, labels)
    return figure


def _overload(document: Document) -> Figure:
    figure, (axes,) = figure_of(3.2)
    figure.subplots_adjust(right=0.88)
    found = document["overload"]
    length = found["seconds"] / len(found["parts"])
    middles = [(number + 0.5) * length for number in range(len(found["parts"]))]
    for name, line in (("p50_ms", "-"), ("p99_ms", "--")):
        latencies = [np.nan if part[name] is None else part[name] for part in found["parts"]]
        label = f"{name[:3]} of accepted requests"
        axes.plot(middles, latencies, color=OURS, marker="o", linestyle=line, label=label)
    held = axes.twinx()
    held.grid(visible=False)
    held.plot(
        range(1, len(found["held_bytes"]) + 1),
        [value / 1e6 for value in found["held_bytes"]],
        color=THEIRS,
    )
    held.set_ylim(0, 1.3e-6 * max(found["held_bytes"], default=1e6))
    held.set_ylabel("resident memory, MB (thin line)")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"seconds at {found['percent']} % of the server's capacity")
    axes.set_ylabel("ms until the answer")
    axes.legend(fontsize=8, frameon=False)
    return figure


_PLOTS: Mapping[str, Callable[[Document], Figure]] = {
    "throughput": lambda document: throughput_figure(panels_of(document)),
    "latency": lambda document: latency_figure(panels_of(document)),
    "scaling": _scaling,
    "memory": _memory,
    "serve": lambda document: serving_figure([document]),
    "overload": _overload,
}
