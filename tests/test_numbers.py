"""A measured number in a page has a source: `docs/numbers.toml` says which.

Tables between ``<!-- table: ... -->`` are made from raw files, and need no entry.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs.generate.pages import BLOCK, pages
from docs.generate.sources import RESULTS
from tests.helpers.bundles import ROOT

SOURCES = tomllib.loads((ROOT / "docs" / "numbers.toml").read_text("utf-8"))

RATE = r"(?:texts|queries|pairs|rows|words|tokens|requests)(?:/s| a second| per second)"
TIME = r"(?:ms|(?<= )s|seconds?|minutes?|hours?)"
NUMBER = r"(?<![\w.,-])\d[\d,.]*(?: (?:and|to) \d[\d,.]*)?"
MEASURED = re.compile(rf"{NUMBER} ?(?:{RATE}|{TIME}|[kKMGT]i?B|%|times)(?![\w/-])")
UNMEASURED = (BLOCK, re.compile(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)", re.DOTALL))
OTHERWISE = ("bge-", "docker ", "make ", "python ", "computed: ")
"""How a source begins that is no file: a command, or a sum that a reader can do."""


def prose(page: Path) -> str:
    """Return a page's text on one line, without code, generated tables and targets of links."""
    text = page.read_text("utf-8")
    for pattern in UNMEASURED:
        text = pattern.sub(" ", text)
    return one_line(text)


def one_line(text: str) -> str:
    return " ".join(text.replace("`", " ").split())


def without_source(text: str, phrases: list[str]) -> list[str]:
    """Return measured numbers that are in none of the phrases."""
    known = [found.span() for phrase in phrases for found in re.finditer(re.escape(phrase), text)]
    return [
        f"{number[0]}: {text[max(0, number.start() - 40) : number.end() + 25]}"
        for number in MEASURED.finditer(text)
        if not any(start <= number.start() and number.end() <= end for start, end in known)
    ]


def is_tested(page: Path) -> bool:
    name = str(page.relative_to(ROOT))
    return any(Path(name).match(pattern) for pattern in SOURCES["pages"])


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_have_a_source(page: Path):
    if not is_tested(page):
        assert without_source(prose(page), list(SOURCES["phrases"])) == []


def test_every_source_is_there_and_in_use():
    text = " ".join(map(prose, pages()))
    assert [phrase for phrase in SOURCES["phrases"] if phrase not in text] == []
    for source in (*SOURCES["pages"].values(), *SOURCES["phrases"].values()):
        there = (RESULTS / f"{source}.json").is_file() or (ROOT / source).is_file()
        assert there or source.startswith(OTHERWISE), source


def test_a_number_without_source_is_seen():
    text = one_line(
        "It takes 3 ms, 4.5 times less, and\n12 GB, at 80 texts/s or 5 % of 512 tokens."
    )
    found = without_source(text, ["It takes 3 ms", "80 texts/s"])
    assert [each.partition(":")[0] for each in found] == ["4.5 times", "12 GB", "5 %"]
