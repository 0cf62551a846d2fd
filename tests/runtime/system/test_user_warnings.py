"""Warnings name the user's line, whichever way the call takes through the package."""

from __future__ import annotations

import inspect

import pytest

from bge_runtime import FlagModel


def here():
    """Return the line that calls this."""
    return inspect.currentframe().f_back.f_lineno


def test_the_line_of_the_call_is_named(model, tiny_bundle):
    for call in ("encode", "encode_queries", "encode_corpus"):
        line = here() + 2
        with pytest.warns(UserWarning, match="is more than the") as caught:
            getattr(model, call)("a text", max_length=9000)
        assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


def test_the_line_of_the_constructor_is_named(tiny_bundle):
    line = here() + 2
    with pytest.warns(UserWarning, match="vectors keep all 48") as caught:
        wide = FlagModel(str(tiny_bundle), truncate_dim=100)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]
    line = here() + 2
    with pytest.warns(UserWarning, match="vectors keep all 48") as caught:
        wide.encode_queries(["a text"])
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]
