"""Pages of the documentation: their blocks of code, and their tables."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\n*\Z")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: The page that it is on, below the repository's root.
        section: The heading above it.
        language: Such as ``python``; empty where none is given.
        text: The code.
        not_run: Why no test runs it, as the comment above it says; empty if one does.
    """

    page: str
    section: str
    language: str
    text: str
    not_run: str


def guide_pages() -> list[Path]:
    """Return the README and all pages of ``docs``."""
    built = DOCS / "_build"
    return [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if built not in p.parents)]


def read(page: str) -> str:
    """Return the text of a page below ``docs``."""
    return (DOCS / page).read_text("utf-8")


def blocks(page: str | Path) -> list[Block]:
    """Return a page's blocks in order.

    Args:
        page: A file, or its path below ``docs``.
    """
    path = DOCS / page
    found = []
    section, end = "", 0
    text = path.read_text("utf-8")
    pattern = r"^#+ (?P<heading>[^\n]+)$|^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        if match["heading"]:
            section = match["heading"]
            continue
        why = _NOT_RUN.search(text[end : match.start()])
        name = str(path.relative_to(ROOT))
        found.append(Block(name, section, match["language"], match["code"], why[1] if why else ""))
        end = match.end()
    return found


def code_of(page: str, section: str, language: str = "python") -> str:
    """Return the only block of a section in a language."""
    (text,) = [block.text for block in blocks(page) if block[1:3] == (section, language)]
    return text


def commands(text: str, name: str) -> list[list[str]]:
    """Return the commands of a name in a shell script, as words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{name} ")]


def table(page: str, section: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its own heading."""
    text = re.split(rf"^#+ {re.escape(section)}$", read(page), flags=re.MULTILINE)[1]
    lines = text[text.index("\n|") + 1 :].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows][2:]


def names(cell: str) -> list[str]:
    """Return what is marked as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)
