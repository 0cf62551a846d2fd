"""The page of errors is made from the classes, names all of them, and quotes real messages."""

from __future__ import annotations

import importlib

import pytest

from bge_runtime.errors import BgeError
from docs.generate.troubleshooting import MESSAGES, PACKAGES, PAGE, find_errors, make_page
from tests.helpers.bundles import ROOT
from tests.helpers.sources import texts_of

ERRORS = find_errors()
TEXTS = [
    " ".join(text.split())
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    for text in texts_of(path, hole="…")
]


def test_the_page_is_what_the_docstrings_make():
    assert PAGE.read_text("utf-8") == make_page(), "run `make charts`"


def test_every_error_is_found():
    # Those of the exporter and the benchmarks are imported with other packages.
    def below(cls):
        return {cls, *(found for each in cls.__subclasses__() for found in below(each))}

    for each in ERRORS:
        importlib.import_module(each.module)
    imported = {(cls.__module__, cls.__name__) for cls in below(BgeError)}
    here = {each for each in imported if not each[0].startswith("bge_bench")}
    assert here == {(each.module, each.name) for each in ERRORS}


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: f"{each.module}.{each.name}")
def test_an_error_has_causes_and_a_cure(error):
    _, causes, cure = error.docstring.split("\n\n")
    assert causes.startswith("Causes: ")
    assert cure.startswith("What to do: ")


@pytest.mark.parametrize("message", [message for message, _ in MESSAGES])
def test_a_message_is_one_of_the_sources(message: str):
    assert any(message in text for text in TEXTS)
