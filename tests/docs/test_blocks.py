"""Every block of Python and shell of the README and ``docs`` runs, or says why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.session import Session
from tests.helpers.bundles import ROOT
from tests.helpers.guides import Block, blocks, guide_pages
from tests.helpers.servers import Server

ELSEWHERE = {
    "docs/coming-from/*.md": "tests/integrations/test_coming_from.py",
    "docs/coming-from/mteb.md": "tests/integrations/test_mteb.py",
    "docs/guides/ray.md": "tests/cluster/test_ray_guide.py",
    "docs/guides/spark.md": "tests/spark/test_spark_recipe.py",
    "docs/guides/other-tools.md": "tests/test_interop.py",
    "docs/reference/public-names.md": "tests/runtime/test_public_surface.py",  # signatures
}
"""Pages whose Python is run by other tests, which compare more, or need other environments."""

ELSEWHERE_SECTIONS = {
    ("docs/guides/serving/index.md", "Start"): "tests/serving_clients/test_openai.py",
    ("docs/guides/serving/rerankers.md", "Serve rerankers"): "tests/serving_clients/test_cohere.py",
    ("docs/guides/serving/deploy.md", "In another application"): "tests/docs/test_serving.py",
}
"""Likewise, sections."""

REASONS = {
    "needs an NVIDIA GPU",
    "needs Docker",
    "needs Slurm",
    "needs a bucket",
    "measures for several seconds",
}
"""Why blocks of pages are not run."""

PAGES = guide_pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]


def run_elsewhere(block: Block) -> str | None:
    """Return the file of the test that runs a block; None if it is run here."""
    if block.language != "python":
        return None
    path = Path(block.page)
    found = [file for pattern, file in ELSEWHERE.items() if path.match(pattern)]
    return ELSEWHERE_SECTIONS.get((block.page, block.section)) or (found[-1] if found else None)


def has_code(page: Path) -> bool:
    return any(
        block.language in ("bash", "python") and not block.not_run and not run_elsewhere(block)
        for block in blocks(page)
    )


@pytest.mark.parametrize(
    "page", list(filter(has_code, PAGES)), ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_of_a_page_run(
    page: Path,
    page_folder: Path,
    serve: Callable[[tuple[str, ...]], Server],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(page_folder)
    if "import datasets" in page.read_text("utf-8"):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", page_folder)
    session = Session(serve)
    for block in blocks(page):
        if not block.not_run and not run_elsewhere(block):
            session.run(block)


def test_blocks_of_code_are_of_a_language_that_is_run():
    """Others are shown: what is printed, files of other programs, and generated signatures."""
    shown = {"", "text", "json", "yaml", "nginx", "promql", "{toctree}", "{eval-rst}"}
    languages = {block.language for block in BLOCKS} - {"python", "bash"}
    assert languages <= shown


def test_what_is_not_run_says_why():
    assert {block.not_run for block in BLOCKS} - {""} == REASONS


def test_blocks_that_run_elsewhere_are_named_there():
    files = {*ELSEWHERE.values(), *ELSEWHERE_SECTIONS.values()}
    for file in files:
        source = (ROOT / file).read_text("utf-8")
        assert re.search(r"code_of|code_blocks|blocks\(|PAGE.read_text", source), file
