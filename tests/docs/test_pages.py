"""Pages are short and can be reached, and every public name has a place in the reference."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from tests.helpers.bundles import ROOT
from tests.helpers.guides import DOCS, blocks, guide_pages, read
from tests.runtime.test_public_surface import MODULES

MAX_WORDS = 1500
LONG = ("docs/reference/*.md", "docs/troubleshooting.md")
"""Pages to look things up in."""

PAGES = [page.relative_to(ROOT) for page in guide_pages()]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_is_read_at_one_sitting(page: Path):
    if any(page.match(pattern) for pattern in LONG):
        return
    words = [word for word in (ROOT / page).read_text("utf-8").split() if re.search(r"\w", word)]
    assert len(words) <= MAX_WORDS


def test_the_reference_has_every_public_module():
    """``automodule`` documents all public names of a module, ``autoclass`` one."""
    pages = "\n".join(page.read_text("utf-8") for page in DOCS.glob("reference/python/*.md"))
    for module in MODULES:
        if f".. automodule:: {module}\n" not in pages:
            own = importlib.import_module(module)
            assert f".. currentmodule:: {module}\n" in pages
            for name in own.__all__:
                assert name == "__version__" or f".. autoclass:: {name}\n" in pages


def test_the_reference_has_every_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    text = "".join(block.text for block in blocks("reference/commands.md"))
    found = re.findall(r"\.\. click:: (\S+)\n +:prog: (\S+)", text)
    assert {name: target for target, name in found} == scripts


def test_the_front_page_answers_what_newcomers_ask():
    for anchor in ("guides/bge-m3.md#sparse-vectors", "guides/serving/index.md",
                   "concepts/parity.md", "guides/production/memory.md"):  # fmt: skip
        assert f"]({anchor})" in read("index.md")
