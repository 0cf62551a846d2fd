"""A release is described once: its version, its Pythons, its changes and its files agree."""

from __future__ import annotations

import importlib.util
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from bge_runtime import __version__
from tests.helpers.bundles import ROOT

CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

SPEC = importlib.util.spec_from_file_location("check", ROOT / "tests/wheel/check_contents.py")
check_contents = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_contents)


def test_the_changelog_begins_with_this_version():
    releases = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)
    assert releases[0][0] == __version__
    headings = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_an_entry_of_the_changelog_is_a_line():
    _, *releases = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)
    for release in releases:
        for part in release.split("\n### ")[1:]:
            for line in filter(None, part.splitlines()[1:]):
                assert line.startswith("- ")
                assert len(line) <= 110


def test_classifiers_name_the_pythons_that_are_tested():
    named = {
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", classifier)
    }
    makefile = (ROOT / "Makefile").read_text("utf-8")
    tested = re.search(r"^PYTHONS \?= (.*)$", makefile, re.MULTILINE)[1].split()
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert named == {oldest, *tested}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with the names that it should have, and no content."""
    path = tmp_path / "bge_runtime-0.1.0-py3-none-any.whl"
    info = [
        name.replace("*", "0.1.0")
        for name in check_contents.read_patterns("wheel")
        if "info" in name
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*check_contents.package_files("wheel"), *info):
            archive.writestr(name, "")
    return path


def test_a_wheel_of_all_files_is_complete(wheel: Path):
    assert check_contents.find_differences(wheel) == []


def test_a_file_too_many_and_a_file_too_few_are_named(wheel: Path):
    damaged = wheel.with_name("damaged.whl")
    with zipfile.ZipFile(damaged, "w") as archive:
        for name in check_contents.read_names(wheel) - {"bge_runtime/py.typed"}:
            archive.writestr(name, "")
        archive.writestr("bge_runtime/weights.bin", "")
    assert check_contents.find_differences(damaged) == [
        "unexpected: bge_runtime/weights.bin",
        "missing: bge_runtime/py.typed",
        "no file matches: bge_runtime/py.typed",
    ]
