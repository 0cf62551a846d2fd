"""How charts look: colours that the colour-blind tell apart, labels beside what they name."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
OURS, THEIRS = "#c2410c", "#57758f"

DARK = {
    INK: "#e6edf3",
    MUTED: "#9da7b1",
    GRID: "#30363d",
    PAPER: "#0d1117",
    OURS: "#ff8f4d",
    THEIRS: "#8fb4d6",
}
"""Colour of an SVG for each of the light ones, where a reader's page is dark."""

_FONT = "DejaVu Sans"
"""It comes with matplotlib, so that a chart is laid out alike everywhere."""
_SHOWN_IN = "-apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_WIDTH_OF_A_CHARACTER = 0.6
_HEIGHT_OF_A_LABEL = 1.3
"""Both as a share of the size of the font."""


_LEADER = {
    "arrowstyle": "-",
    "color": GRID,
    "linewidth": 0.7,
    "shrinkA": 0,
    "shrinkB": 4,
    "relpos": (0, 0.5),
}
"""The line from a label that was moved to its point."""


@contextmanager
def styled(salt: str) -> Iterator[None]:
    """Draw in the style of our charts; ids in an SVG follow from the salt."""
    settings = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "font.family": _FONT,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "figure.facecolor": PAPER,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.major.pad": 6,
        "ytick.major.pad": 5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
    }
    with mpl.rc_context(settings):
        yield


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure as SVG: the same bytes for the same numbers, dark on a dark page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text(_compact(buffer.getvalue()), encoding="utf-8")


def _compact(svg: str) -> str:
    """Return a third of what matplotlib writes, with colours for dark pages."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("<g/>", "")
    svg = re.sub(r"font-family: [^;]*; ?| transform=.rotate\(-0 [^)]*\).", "", svg)
    # Hundredths of a point are enough for what is drawn, not for what is written.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = re.sub(r"\n(?=[^<])", " ", svg)
    while (shorter := re.sub(r"<g>\s*</g>\s*", "", svg)) != svg:
        svg = shorter
    return svg.replace("<defs>", f"{style_element()}<defs>", 1)


def style_element() -> str:
    """Return the element of an SVG that sets its font, and its colours on a dark page."""
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    text = f"text{{font-family:{_SHOWN_IN}}}"
    return f"<style>{text}@media(prefers-color-scheme:dark){{{rules}}}</style>"


@dataclass(frozen=True)
class Label:
    """A point of a chart, in its data's coordinates, and what is written to its right."""

    x: float
    y: float
    text: str
    ours: bool


def label_points(axes: Axes, labels: Sequence[Label], *, size: float = 8) -> None:
    """Write labels to the right of their points, moved up or down where they would overlap.

    The limits of the axes, and their place in the figure, must be set.
    """
    scale = 72 / axes.figure.dpi
    placed = [(tuple(axes.transData.transform((each.x, each.y)) * scale), each) for each in labels]
    for group in _columns(placed, size):
        heights = spread([y for (_, y), _ in group], gap=_HEIGHT_OF_A_LABEL * size)
        for ((_, y), label), height in zip(group, heights, strict=True):
            moved = height - y
            axes.annotate(
                label.text,
                (label.x, label.y),
                xytext=(9 if abs(moved) < 1 else 14, moved),
                textcoords="offset points",
                va="center_baseline",
                fontsize=size,
                fontweight="bold" if label.ours else "normal",
                color=OURS if label.ours else INK,
                annotation_clip=False,
                arrowprops=None if abs(moved) < 1 else _LEADER,
            )


Placed = tuple[tuple[float, float], Label]


def _columns(placed: Sequence[Placed], size: float) -> Iterator[list[Placed]]:
    """Yield groups of labels that stand in each other's way, from left to right."""
    group: list[Placed] = []
    for each in sorted(placed, key=lambda found: found[0]):
        width = max((len(label.text) for _, label in group), default=0)
        reach = group[-1][0][0] + size * _WIDTH_OF_A_CHARACTER * width if group else 0
        if group and each[0][0] > reach:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Return heights moved as little as keeps them apart by a gap, in their order."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    blocks: list[tuple[float, int]] = []  # middle, members
    for at in order:
        middle, members = heights[at], 1
        while blocks and middle - blocks[-1][0] < gap * (members + blocks[-1][1]) / 2:
            before, count = blocks.pop()
            middle = (before * count + middle * members) / (count + members)
            members += count
        blocks.append((middle, members))
    found = [
        middle + gap * (number - (members - 1) / 2)
        for middle, members in blocks
        for number in range(members)
    ]
    return [found[order.index(at)] for at in range(len(heights))]


def figure_of(height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of a height in inches, one under the other.

    It is as wide as a page of text, so that it is read on a phone too.
    """
    total = panels * height + 0.45
    figure, axes = plt.subplots(panels, 1, figsize=(6.6, total), squeeze=False)
    figure.subplots_adjust(
        left=0.1, right=0.97, bottom=0.55 / total, top=1 - 0.3 / total, hspace=0.42
    )
    return figure, [at for (at,) in axes]
