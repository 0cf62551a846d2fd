"""The check of prose finds what it should; `make lint` runs it on the pages."""

from __future__ import annotations

import pytest

from tests import prose

LONG = "word " * 36


@pytest.mark.parametrize(
    "page",
    [
        f"{LONG}.",
        f"# Heading\n\n- An item. {LONG.capitalize()}",
        f"One line\n{LONG}",
        "It simply works.",
        "| a | Seamless |",
        "> You can [easily](page.md) do it.",
    ],
)
def test_a_finding_is_told(page: str):
    assert len(list(prose.check_page(page))) == 1


@pytest.mark.parametrize(
    "page",
    [
        f"{'Word ' * 30}. {'Word ' * 30}.",
        f"```\n{LONG} simply\n```\n",
        f"| {LONG} | {LONG} |",
        "`simply` is a name, and so is `just`.",
        f"- {'word ' * 30}\n- {'word ' * 30}",
        f"Short `{LONG}`.",
        "<!-- simply -->",
        "An adjustment is justified.",
    ],
)
def test_what_is_fine_is_not(page: str):
    assert list(prose.check_page(page)) == []


@pytest.mark.parametrize(
    ("docstring", "found"),
    [("Return the number.", 0), ("Returns the number.", 1), (f"{LONG}.", 1), ("Short.\n\nA", 0)],
)
def test_docstrings_begin_in_a_way(docstring: str, found: int):
    source = f'def function():\n    """{docstring}"""\n'
    assert len(list(prose.check_docstrings(source))) == found


def test_a_line_is_where_a_paragraph_begins():
    assert [line for line, _ in prose.check_page(f"one\n\ntwo\n\n{LONG}\nmore")] == [5]
