"""Charts, pictures and tables of pages are what committed files give: `make charts` writes them."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from docs.generate.architecture import LAYERS, write_architecture
from docs.generate.charts import write_charts
from docs.generate.pages import BLOCK, filled, pages
from docs.generate.sources import RESULTS
from docs.generate.terminal import FOLDER, write_pictures
from tests.helpers.bundles import ROOT

PAGES = [page for page in pages() if BLOCK.search(page.read_text("utf-8"))]
IMAGES = ROOT / "docs" / "images"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_those_of_the_raw_files(page: Path):
    assert filled(page) == page.read_text("utf-8"), "run `make charts`"


def test_a_changed_figure_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    page = ROOT / "README.md"
    copy = tmp_path / "README.md"
    monkeypatch.setattr("docs.generate.pages.RESULTS", tmp_path / "benchmarks" / "results")
    copy.write_text(page.read_text("utf-8").replace("| peak memory | 1", "| peak memory | 9"))
    assert filled(copy) == page.read_text("utf-8") != copy.read_text("utf-8")


def test_charts_and_pictures_are_those_of_the_committed_files(tmp_path: Path):
    made = (*write_charts(tmp_path), write_architecture(tmp_path), *write_pictures(tmp_path))
    for file in made:
        assert file.read_bytes() == (IMAGES / file.name).read_bytes(), "run `make charts`"


def test_terminals_show_no_folder_of_the_machine_that_ran_the_commands():
    for file in FOLDER.glob("*.txt"):
        assert not re.findall(r"(?<![\w.~])/\w+/", file.read_text("utf-8"))


def test_the_picture_has_the_layers_of_the_contracts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = {
        contract["containers"][0]: contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    }
    for package, layers in LAYERS.items():
        drawn = [set(layer) for layer in layers]
        ruled = [set(re.findall(r"\w+", layer)) for layer in contracts[package]]
        assert drawn == ruled[:-1], "the last layer, of single modules, is not drawn"


def test_raw_files_take_no_more_room_than_they_need():
    """`python -m json.tool --compact --no-ensure-ascii FILE FILE` makes them so."""
    for file in RESULTS.glob("*.json"):
        text = file.read_text("utf-8")
        compact = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        assert text == f"{compact}\n", file
