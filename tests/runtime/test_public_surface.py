"""A page lists what users may import, with signatures: a change of it is seen in a diff.

`python -m tests.runtime.test_public_surface` writes the page.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, is_typeddict

import pytest

import bge_runtime

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "public-names.md"

INTRODUCTION = """\
# Public names

What other code may import. Everything else may change in any release. FlagEmbedding's documentation
explains the arguments that it has too; `help(FlagModel)` explains all of them.

A test compares this page with the code. `python -m tests.runtime.test_public_surface` writes it.
"""

NEEDS = {
    "bge_runtime.bulk": "pyarrow",
    "bge_runtime.integrations.chroma": "chromadb",
    "bge_runtime.integrations.langchain": "langchain_core",
    "bge_runtime.integrations.llama_index": "llama_index.core",
    "bge_runtime.integrations.mteb": "mteb",
    "bge_runtime.integrations.ray": "ray",
    "bge_runtime.serving": "starlette",
}
MODULES = ["bge_runtime", "bge_runtime.errors", "bge_runtime.stores", *NEEDS]


def public_names(module: ModuleType) -> list[str]:
    """Return ``__all__``, or else the public classes and functions that the module defines."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return sorted(getattr(module, "__all__", own))


def describe(name: str, value: Any) -> Iterator[str]:
    """Yield the lines that describe one public name."""
    if inspect.isfunction(value):
        yield from signature(name, value)
    elif not inspect.isclass(value):
        yield f"{name}: {type(value).__name__}"
    else:
        bases = ", ".join(base.__name__ for base in value.__bases__)
        yield f"class {name}({bases})" if issubclass(value, Exception) else f"class {name}"
        lines = [*describe_fields(value), *describe_members(value)]
        yield from (f"    {line}" for line in lines)


def describe_fields(owner: type) -> Iterator[str]:
    """Yield the public fields of a dataclass, a typed dictionary or a Pydantic model."""
    for base in owner.__mro__:
        has_fields = is_dataclass(base) or is_typeddict(base) or hasattr(base, "model_fields")
        if is_ours(base) and has_fields:
            for name, annotation in inspect.get_annotations(base).items():
                if not name.startswith("_"):
                    yield f"{name}: {getattr(annotation, '__forward_arg__', annotation)}"


def describe_members(owner: type) -> Iterator[str]:
    """Yield the public methods and properties that bge-runtime defines."""
    for name in sorted(dir(owner)):
        value = inspect.getattr_static(owner, name)
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if (name.startswith("_") and name not in {"__init__", "__call__"}) or not is_ours(function):
            continue
        if isinstance(value, property):
            yield f"{name}: {inspect.signature(function).return_annotation}"
        elif inspect.isfunction(function):
            if isinstance(value, classmethod | staticmethod):
                yield f"@{type(value).__name__}"
            yield from signature(name, function)


def is_ours(value: object) -> bool:
    """Return whether bge-runtime defines a class or function."""
    return str(getattr(value, "__module__", "")).startswith("bge_runtime")


class Annotation(str):
    """An annotation, printed without the quotes that `inspect.signature` puts around its text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, function: Any) -> Iterator[str]:
    """Yield ``def`` and the parameters, one on a line where there are many."""
    found = inspect.signature(function)
    parameters = [
        parameter
        if parameter.annotation is parameter.empty
        else parameter.replace(annotation=Annotation(parameter.annotation))
        for parameter in found.parameters.values()
    ]
    text = str(inspect.Signature(parameters))
    returns = f" -> {found.return_annotation}"
    line = f"def {name}{text}{returns}"
    if len(line) <= 90:
        yield line
        return
    yield f"def {name}("
    yield from (f"    {part}," for part in re.split(r", (?=[*/]|\w+: |\w+=)", text[1:-1]))
    yield f"){returns}"


def section(module: str) -> str:
    """Return the part of the page about one module."""
    imported = importlib.import_module(module)
    lines = [
        line
        for name in public_names(imported)
        for line in ["", *describe(name, getattr(imported, name))]
    ]
    return "\n".join([f"## {module}", "", "```python", *lines[1:], "```", ""])


@pytest.mark.parametrize("module", MODULES)
def test_public_names_and_signatures_are_those_of_the_page(module):
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    assert section(module) in PAGE.read_text("utf-8")


def test_every_module_of_the_page_is_compared():
    headings = [line[3:] for line in PAGE.read_text("utf-8").splitlines() if line[:3] == "## "]
    assert headings == MODULES
    assert bge_runtime.__all__


def sections() -> Iterator[str]:
    """Yield the parts of the page; that of a module whose package is not installed as it is."""
    written = PAGE.read_text("utf-8")
    for module in MODULES:
        try:
            yield section(module)
        except ImportError:
            _, heading, rest = written.partition(f"## {module}\n")
            yield heading + rest.partition("\n## ")[0]


if __name__ == "__main__":
    PAGE.write_text("\n".join([INTRODUCTION, *sections()]), "utf-8")
