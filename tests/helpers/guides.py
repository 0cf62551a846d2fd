"""Pages of the guide: their blocks of code, and their tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple


class Block(NamedTuple):
    """A block of code.

    Attributes:
        section: The section that it is in.
        language: Such as ``python``; empty for what a command prints.
        text: The code.
    """

    section: str
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield a page's blocks in order."""
    for section in page.split("\n## ")[1:]:
        for language, text in re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL):
            yield Block(section.partition("\n")[0], language, text)


def commands(text: str, name: str) -> list[list[str]]:
    """Return the commands of a name in a shell script, as words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(f"{name} ")]


def table(page: str, section: str) -> list[list[str]]:
    """Return the cells of a section's first table, without its heading."""
    text = next(part for part in page.split("\n## ") if part.startswith(f"{section}\n"))
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def names(cell: str) -> list[str]:
    """Return what is marked as code in a cell."""
    return re.findall(r"`([^`]+)`", cell)
