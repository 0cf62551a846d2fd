"""The picture of what imports what; a test compares `LAYERS` with import-linter's contracts."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bge_bench.reports.style import GRID, INK, MUTED, OURS, PAPER, style_element

LAYERS = {
    "bge_export": [
        {"cli": "bge-export"},
        {"synthetic": "checkpoints with random weights, for tests and benchmarks"},
        {"encoder": "trace, then lower", "decoder": "build from the configuration"},
        {"targets": "which graphs there are: cpu, openvino, cuda, tensorrt"},
        {"passes": "graph transformations, one a file"},
        {"checkpoint": "settings and weights", "bundle": "parity gate, bge.json"},
    ],
    "bge_runtime": [
        {"cli": "bge-embed, bge-rerank, bge-serve, bge-runtime"},
        {"integrations": "LangChain, LlamaIndex, Chroma, mteb, Ray"},
        {"serving": "bge-serve: HTTP", "bulk": "files to shards"},
        {"stores": "Qdrant, Milvus"},
        {"rerankers": "FlagReranker, FlagLLMReranker, FlagAutoReranker"},
        {"models": "FlagModel, BGEM3FlagModel, FlagLLMModel, FlagAutoModel"},
        {"m3": "BGE-M3's outputs", "sources": "from a name to a bundle"},
        {"encoding": "texts to batches, batches to vectors"},
        {"variants": "which graph runs here, and is it close enough to PyTorch"},
        {"engines": "ONNX Runtime, OpenVINO, TensorRT"},
        {"bundle": "bge.json, graphs, files"},
        {"system": "processors, memory, cache, files, threads"},
    ],
}
"""The folders of each package, those of a layer beside each other; a layer imports those below.

Modules that lie below all folders are left out.
"""

TITLES = {
    "bge_export": ("bge_export", "once, where PyTorch is"),
    "bge_runtime": ("bge_runtime", "anywhere, without PyTorch"),
}
_WIDTH, _HEIGHT, _GAP = 330, 38, 7
_LEFT = {"bge_export": 16, "bge_runtime": 534}
_TOP = 62


def write_architecture(folder: Path) -> Path:
    """Write the picture into a folder."""
    bottom = _TOP + len(LAYERS["bge_runtime"]) * (_HEIGHT + _GAP)
    parts = [_package(name, bottom) for name in LAYERS]
    heights = {name: _middle_of(name, "bundle", bottom) for name in LAYERS}
    parts.append(_bundle_between(heights))
    width, height = _LEFT["bge_runtime"] + _WIDTH + 16, bottom + 12
    path = folder / "architecture.svg"
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="bge_export writes a bundle, bge_runtime reads '
        f'it">\n{style_element()}\n'
        f'<rect width="{width}" height="{height}" style="fill: {PAPER}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n",
        encoding="utf-8",
    )
    return path


def _top_of(package: str, row: int, bottom: int) -> int:
    """Return where a layer's boxes begin; both packages stand on the same ground."""
    return bottom - (len(LAYERS[package]) - row) * (_HEIGHT + _GAP)


def _middle_of(package: str, folder: str, bottom: int) -> float:
    (row,) = (number for number, layer in enumerate(LAYERS[package]) if folder in layer)
    return _top_of(package, row, bottom) + _HEIGHT / 2


def _package(package: str, bottom: int) -> str:
    left, (name, about) = _LEFT[package], TITLES[package]
    top = _top_of(package, 0, bottom)
    lines = [
        _text(left, top - 28, name, size=15, bold=True),
        _text(left, top - 11, about, size=12, colour=MUTED),
    ]
    for row, layer in enumerate(LAYERS[package]):
        y = _top_of(package, row, bottom)
        width = (_WIDTH - _GAP * (len(layer) - 1)) / len(layer)
        for column, (folder, what) in enumerate(layer.items()):
            x = left + column * (width + _GAP)
            colour = OURS if folder == "bundle" else GRID
            lines += [
                _box(x, y, width, _HEIGHT, colour),
                _text(x + 9, y + 16, folder, size=12, bold=True),
                _text(x + 9, y + 31, what, size=10.5, colour=MUTED),
            ]
    return "\n".join(lines)


def _bundle_between(heights: dict[str, float]) -> str:
    """Return what one package writes and the other one reads, and the arrows from and to it."""
    left = _LEFT["bge_export"] + _WIDTH
    right = _LEFT["bge_runtime"]
    width, height = 118, 122
    x = (left + right - width) / 2
    y = min(heights.values()) - height - 52
    start, end = (heights[name] for name in LAYERS)
    middle = x + width / 2
    lines = [
        _box(x, y, width, height, OURS),
        _text(x + 10, y + 21, "a bundle", size=13, bold=True),
        *(
            _text(x + 10, y + 42 + 17 * number, line, size=11, colour=MUTED)
            for number, line in enumerate(
                ("bge.json", "graphs", "weights", "tokenizer", "measured parity")
            )
        ),
        _arrow(f"M{left + 4} {start}H{middle - 18}V{y + height + 8}"),
        _arrow(f"M{middle + 18} {y + height + 2}V{end}H{right - 8}"),
        _text(left + 6, start - 7, "writes", size=10.5, colour=MUTED),
        _text(right - 44, end - 7, "reads", size=10.5, colour=MUTED),
    ]
    return "\n".join(lines)


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
        f'style="fill: none; stroke: {colour}; stroke-width: 1.2"/>'
    )


def _text(
    x: float, y: float, text: str, *, size: float, bold: bool = False, colour: str = INK
) -> str:
    weight = "; font-weight: bold" if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" style="fill: {colour}; font-size: {size}px{weight}">'
        f"{escape(text)}</text>"
    )


def _arrow(path: str) -> str:
    """Return a line with a head, whose last stroke is horizontal or vertical."""
    *_, last = path.replace("V", " V").replace("H", " H").split()
    head = "l-6 -4m6 4l-6 4" if last[0] == "H" else "l-4 6m4 -6l4 6"
    return f'<path d="{path}{head}" style="fill: none; stroke: {OURS}; stroke-width: 1.4"/>'
