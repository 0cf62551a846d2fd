"""The README is short, prints what it says, and its links, and those of the other pages, exist."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.bundles import ROOT, export, write_tiny_bert

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_the_readme_is_a_front_door():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 600


def test_the_example_prints_what_the_readme_says(made_once, capsys):
    """The bundle has the width of bge-small-en-v1.5, one layer and random weights."""
    write = partial(write_tiny_bert, layers=1, hidden_size=384, heads=12)
    checkpoint = made_once("readme-checkpoint", write)
    bundle = made_once("readme-bundle", partial(export, checkpoint, targets=("cpu",)))
    page = (ROOT / "README.md").read_text("utf-8")
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL).groups()
    assert '"bge-small-en-v1.5"' in code
    exec(compile(code.replace('"bge-small-en-v1.5"', repr(str(bundle))), "README", "exec"), {})
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else page.parent / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
