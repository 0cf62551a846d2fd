"""Fill what pages leave between ``<!-- table: ... -->`` and ``<!-- end -->``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from docs.generate.readme import chart_caption, readme_table
from docs.generate.sources import RESULTS, ROOT
from docs.generate.tables import TABLES

END = "<!-- end -->"
BLOCK = re.compile(rf"(<!-- table: ([^>]+) -->\n).*?({END})", re.DOTALL)


def pages() -> Iterator[Path]:
    """Yield README and the pages of the documentation."""
    yield ROOT / "README.md"
    yield ROOT / "benchmarks" / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def filled(page: Path) -> str:
    """Return a page's text, with its tables as the raw files give them."""

    def block(match: re.Match[str]) -> str:
        kind, *names = match[2].split()
        table = {**TABLES, "readme": readme_table, "readme-chart": chart_caption}[kind](*names)
        return f"{match[1]}\n{_with_links(table, page)}\n\n{match[3]}"

    return BLOCK.sub(block, page.read_text("utf-8"))


def _with_links(table: str, page: Path) -> str:
    folder = Path(os.path.relpath(RESULTS, page.parent)).as_posix()
    return table.replace("](results:", f"]({folder}/")
