"""Arguments that are lists of texts, that are not, and that hold something else than texts."""

from __future__ import annotations

import collections
import enum
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest


class Named(str, enum.Enum):  # noqa: UP042  # a StrEnum formats as its value
    """Strings whose ``format`` gives their name."""

    ONE = "one"
    TWO = "two"


class Loud(str):
    """A string that changes when it is concatenated or formatted."""

    __slots__ = ()

    def __radd__(self, other: str) -> str:
        return "LOUD"

    def __format__(self, spec: str) -> str:
        return "LOUD"


def pandas() -> Any:
    return pytest.importorskip("pandas", reason="pandas is not installed")


def polars() -> Any:
    return pytest.importorskip("polars", reason="polars is not installed")


def pyarrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def datasets() -> Any:
    return pytest.importorskip("datasets", reason="datasets is not installed")


COLUMN = r'Pass one of its columns, such as df\["text"\]'
WORDS = ["one", "two"]

NO_LIST: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "None$"),
    "int": (lambda: 7, "int$"),
    "NumPy scalar": (lambda: np.int64(7), "int64$"),
    "type": (lambda: str, "type$"),
    "bytes": (lambda: b"one", "bytes. Decode it"),
    "bytearray": (lambda: bytearray(b"one"), "bytearray. Decode it"),
    "memoryview": (lambda: memoryview(b"one"), "memoryview. Decode it"),
    "dict": (lambda: {"one": 1}, r"dict. Pass list\(.+\.values\(\)\)"),
    "Counter": (lambda: collections.Counter(WORDS), "Counter. Pass list"),
    "UserDict": (lambda: collections.UserDict(one=1), "UserDict. Pass list"),
    "set": (lambda: {"one"}, "set. It has no order"),
    "frozenset": (lambda: frozenset(WORDS), "frozenset. It has no order"),
    "array of no dimension": (lambda: np.array("one"), r"ndarray. Pass array.item\(\)"),
    "array of two": (lambda: np.array([WORDS]), "ndarray. Pass one dimension"),
    "file": (lambda: io.StringIO("one\ntwo\n"), "StringIO. Pass file.read"),
    "binary file": (lambda: io.BytesIO(b"one"), "BytesIO. Pass file.read"),
    "pandas table": (lambda: pandas().DataFrame({"text": WORDS}), f"DataFrame. {COLUMN}"),
    "polars table": (lambda: polars().DataFrame({"text": WORDS}), f"DataFrame. {COLUMN}"),
    "polars query": (lambda: polars().LazyFrame({"text": WORDS}), f"LazyFrame. {COLUMN}"),
    "arrow table": (lambda: pyarrow().table({"text": WORDS}), f"Table. {COLUMN}"),
    "dataset": (lambda: datasets().Dataset.from_dict({"text": WORDS}), f"Dataset. {COLUMN}"),
}
"""A function that makes the argument, and what the error says after "not "."""

NO_TEXT: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: ["one", None], "None. Leave out what is missing"),
    "NaN": (lambda: ["one", float("nan")], r"float \(nan\). Leave out what is missing"),
    "bytes": (lambda: ["one", b"two"], "bytes. Decode it"),
    "int": (lambda: ["one", 3], "int$"),
    "bool": (lambda: ("one", True), "bool$"),
    "list": (lambda: ["one", ["two"]], "list. Pass one flat list"),
    "tuple": (lambda: ["one", ("two", "three")], "tuple. Pass one flat list"),
    "dict": (lambda: iter(["one", {"text": "two"}]), "dict$"),
    "UserString": (lambda: ["one", collections.UserString("two")], "UserString$"),
    "array of numbers": (lambda: np.array(["one", 1.5], dtype=object), "float$"),
    "pandas NA": (lambda: pandas().Series(["one", None], dtype="string"), "NAType. Leave out"),
    "pandas NaN": (lambda: pandas().Series(["one", None]), r"float \(nan\)|None"),
    "pandas NaT": (lambda: pandas().Series(["one", pandas().NaT], dtype=object), "NaTType"),
    "polars null": (lambda: polars().Series(["one", None]), "None. Leave out"),
    "arrow null": (lambda: pyarrow().array(["one", None]), "None. Leave out"),
}
"""A function that makes a list whose second element is not a text, and what the error says."""

LISTS: dict[str, Callable[[], Any]] = {
    "list": lambda: WORDS,
    "tuple": lambda: tuple(WORDS),
    "generator": lambda: (word for word in WORDS),
    "map": lambda: map(str.strip, [" one", "two "]),
    "deque": lambda: collections.deque(WORDS),
    "keys": lambda: dict.fromkeys(WORDS).keys(),
    "values": lambda: dict(enumerate(WORDS)).values(),
    "array": lambda: np.array(WORDS),
    "array of objects": lambda: np.array(WORDS, dtype=object),
    "NumPy strings": lambda: [np.str_("one"), np.str_("two")],
    "enum members": lambda: list(Named),
    "subclass": lambda: [Loud("one"), "two"],
    "pandas column": lambda: pandas().Series(WORDS, index=[7, 3]),
    "pandas row": lambda: pandas().Series(WORDS, index=["columns", "readline"]),
    "pandas strings": lambda: pandas().Series(WORDS, dtype="string"),
    "pandas categories": lambda: pandas().Series(WORDS, dtype="category"),
    "pandas index": lambda: pandas().Index(WORDS),
    "polars column": lambda: polars().Series(WORDS),
    "arrow array": lambda: pyarrow().array(WORDS),
    "arrow chunks": lambda: pyarrow().chunked_array([["one"], ["two"]]),
    "dataset column": lambda: datasets().Dataset.from_dict({"text": WORDS})["text"],
}
"""Functions that make the two texts "one" and "two"."""
