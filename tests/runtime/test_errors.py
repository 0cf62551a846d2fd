"""The tree of errors matches the docstring of `bge_runtime.errors`."""

from __future__ import annotations

import builtins
import re

import pytest

from bge_runtime import errors

LINE = re.compile(r"^ {4}([│ ├└─]*)(\w+Error) *(?:\((\w+)\))?", re.MULTILINE)


def drawn_tree():
    """Read name, parent and built-in base of each error out of the docstring."""
    above = []
    for branch, name, builtin in LINE.findall(errors.__doc__):
        del above[len(branch) // 4 :]
        yield name, above[-1] if above else "Exception", builtin
        above.append(name)


TREE = list(drawn_tree())


def test_the_docstring_lists_every_error():
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {name for name, _, _ in TREE} == defined
    assert len(TREE) > 10


@pytest.mark.parametrize(("name", "parent", "builtin"), TREE)
def test_an_error_has_the_bases_that_are_drawn(name, parent, builtin):
    bases = [base.__name__ for base in getattr(errors, name).__bases__]
    assert bases == [parent, *([builtin] if builtin else [])]
    assert not builtin or hasattr(builtins, builtin)


@pytest.mark.parametrize("name", [name for name, _, _ in TREE])
def test_an_error_prints_its_message(name):
    assert str(getattr(errors, name)("what to do")) == "what to do"
