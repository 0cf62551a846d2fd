"""Check what users pass: devices, texts, pairs of texts, and counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from bge_runtime.engines import device_kind
from bge_runtime.errors import DeviceError


def resolve_devices(devices: str | int | Sequence[str] | Sequence[int] | None) -> list[str]:
    """Return FlagEmbedding's ``devices`` as a list of names.

    Args:
        devices: A name, a GPU's number, a list of either, or None for the default.

    Returns:
        Names such as ``"cpu"`` and ``"cuda:1"``; at least one.

    Raises:
        DeviceError: If a name has no known form, or the list is empty.
        TypeError: If it is something else.
    """
    if devices is None:
        return ["cpu"]
    listed: Sequence[Any] = [devices] if isinstance(devices, str | int) else devices
    if not isinstance(listed, list | tuple) or not all(
        isinstance(device, str | int) and not isinstance(device, bool) for device in listed
    ):
        raise TypeError(
            "devices must be a name, a GPU's number or a list of either, "
            f"such as 'cpu' or ['cuda:0', 'cuda:1'], but is {devices!r}"
        )
    if not listed:
        raise DeviceError("devices is an empty list; name one, such as 'cpu', or pass None")
    names = [f"cuda:{device}" if isinstance(device, int) else device for device in listed]
    return ["cpu" if device_kind(name) == "cpu" else name for name in names]


def as_texts(texts: object, *, name: str) -> tuple[list[str], bool]:
    """Return the texts of a call as a list of strings.

    Args:
        texts: A string, or an ordered iterable of strings.
        name: Name of the argument, for errors.

    Returns:
        The texts, and whether a single string was given.

    Raises:
        TypeError: If something is not a string.
    """
    if isinstance(texts, str):
        return [_plain(texts)], True
    return _strings(list_items(texts, name, "a string or a list of strings"), name), False


def as_text_list(texts: object, *, name: str) -> list[str]:
    """Return texts as a list where a single string is a mistake.

    Raises:
        TypeError: If they are a string, or something is not one.
    """
    wanted = "a list of strings"
    if isinstance(texts, str):
        raise TypeError(f"{name} must be {wanted}, not a string. Pass [text]")
    return _strings(list_items(texts, name, wanted), name)


def as_text(text: object, *, name: str) -> str:
    """Return a single text as a plain string.

    Raises:
        TypeError: If it is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {type_name(text)}")
    return _plain(text)


def _plain(text: str) -> str:
    """Return a string as ``str``; a subclass may have a ``format`` or ``+`` of its own."""
    return text if type(text) is str else str.__str__(text)


def _strings(items: list[Any], name: str) -> list[str]:
    if set(map(type, items)) <= {str}:  # the usual case, checked quickly
        return items
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(f"{name}[{index}] must be a string, not {type_name(item)}{_hint(item)}")
    return [_plain(item) for item in items]


def _hint(item: object) -> str:
    if _is_missing(item):
        return ". Leave out what is missing, or pass '' in its place"
    if isinstance(item, bytes | bytearray):
        return ". Decode it: text.decode()"
    return ". Pass one flat list" if isinstance(item, list | tuple | np.ndarray) else ""


def _is_missing(value: object) -> bool:
    """Return whether a value marks a missing text in a table: None, NaN, NA or NaT."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def type_name(value: object) -> str:
    """Return the name of a value's type, for errors."""
    name = "None" if value is None else type(value).__name__
    return f"{name} (nan)" if isinstance(value, float) and math.isnan(value) else name


def list_items(
    values: Any,
    name: str,
    wanted: str,
    *,
    dims: int = 1,
    of_table: str = 'Pass one of its columns, such as df["text"]',
) -> list[Any]:
    """Return the items of an ordered collection as a list.

    Not everything that can be iterated is one: a table yields the names of its columns, a mapping
    its keys, a file lines with their ends.

    Args:
        values: The collection.
        name: Name of the argument, for errors.
        wanted: What it must be, for errors.
        dims: Maximum dimensions of an array.
        of_table: What to do with a table, for errors.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(values, list | tuple):
        return list(values)
    kind = type(values)
    ndim = getattr(values, "ndim", None) if hasattr(kind, "ndim") else None
    if isinstance(values, bytes | bytearray | memoryview):
        what_to_do = "Decode it: text.decode()"
    elif hasattr(kind, "columns") or hasattr(kind, "column_names"):
        what_to_do = of_table
    elif ndim is not None and not isinstance(values, np.generic):
        if 1 <= ndim <= dims:
            return list(values)
        what_to_do = "Pass array.item()" if ndim == 0 else "Pass one dimension, such as array[:, 0]"
    elif isinstance(values, MappingView) and isinstance(values, Iterable):
        return list(values)  # in the order of what it views
    elif isinstance(values, Mapping) or (hasattr(kind, "keys") and hasattr(kind, "__getitem__")):
        what_to_do = f"Pass list({name}.values()) or list({name}.keys())"
    elif isinstance(values, AbstractSet):
        what_to_do = f"It has no order. Pass a list, such as sorted({name})"
    elif callable(getattr(values, "readline", None)):
        what_to_do = "Pass file.read().splitlines()"
    elif hasattr(kind, "to_pylist"):  # a column of PyArrow, whose elements are not Python's own
        return list(values.to_pylist())
    elif isinstance(values, Iterable) and not isinstance(values, str):
        return list(values)
    else:
        what_to_do = ""
    raise TypeError(
        f"{name} must be {wanted}, not {type_name(values)}" + (what_to_do and f". {what_to_do}")
    )


def as_pairs(sentence_pairs: Any) -> tuple[list[tuple[str, str]], bool]:
    """Return the pairs of a call as a list.

    Args:
        sentence_pairs: A pair of strings, or an ordered iterable of pairs; either may be an array.

    Returns:
        The pairs, and whether a single one was given.

    Raises:
        TypeError: If it is neither, or a text is not a string.
        ValueError: If something in the list is not a pair, or a text is not valid Unicode.
    """
    listed = list_items(
        sentence_pairs,
        "sentence_pairs",
        "a pair of strings or a list of pairs",
        dims=2,
        of_table='Pass list(zip(df["query"], df["passage"]))',
    )
    # Not of any iterable: an iterator over strings is more likely a list of queries alone.
    may_be_one = isinstance(sentence_pairs, Sequence | np.ndarray)
    single = may_be_one and bool(listed) and isinstance(listed[0], str)
    pairs: list[tuple[str, str]] = []
    for index, given in enumerate([listed] if single else listed):
        name = f"sentence_pairs[{index}]"
        wanted = "a pair of a query and a passage"
        pair = [] if isinstance(given, str) else list_items(given, name, wanted)
        if len(pair) != 2:
            raise ValueError(f"{name} must be {wanted}, but is {given!r}")
        for side, text in enumerate(pair):
            if not isinstance(text, str):
                raise TypeError(f"{name} must hold strings, not {type_name(text)}")
            # Here, since only the distinct texts of a batch reach the tokenizer.
            check_unicode(text, f"{name}[{side}]")
        pairs.append((_plain(pair[0]), _plain(pair[1])))
    return pairs, single


def check_unicode(text: str, name: str) -> None:
    """Check that a text is valid Unicode.

    Raises:
        ValueError: If it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} is not valid Unicode: character {error.start} is the lone "
            f"surrogate U+{ord(text[error.start]):04X}. Repair it with "
            "text.encode('utf-8', 'replace').decode()"
        ) from None


def check_positive(name: str, value: object) -> None:
    """Check that a value is a positive whole number.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")
