"""What users pass, checked: devices, texts, pairs of them, and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeGuard

import numpy as np

from bge_runtime.engines import device_kind
from bge_runtime.errors import DeviceError


def resolve_devices(devices: str | int | Sequence[str] | Sequence[int] | None) -> list[str]:
    """Turn FlagEmbedding's ``devices`` into a list of names.

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
    """Check and list the texts of a call.

    Args:
        texts: A string, or an ordered iterable of strings.
        name: Name of the argument, for errors.

    Returns:
        The texts, and whether a single string was given.

    Raises:
        TypeError: If something is not a string.
    """
    if isinstance(texts, str):
        return [texts], True
    if not _is_ordered(texts):
        raise TypeError(f"{name} must be a string or a list of strings, not {_type(texts)}")
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a string, not {_type(text)}")
    return listed, False


def _is_ordered(value: object) -> TypeGuard[Iterable[Any]]:
    return isinstance(value, Iterable) and not isinstance(
        value, str | bytes | Mapping | AbstractSet
    )


def _type(value: object) -> str:
    return "None" if value is None else type(value).__name__


def as_pairs(sentence_pairs: Any) -> tuple[list[tuple[str, str]], bool]:
    """Check and list the pairs of a call.

    Args:
        sentence_pairs: A pair of strings, or an ordered iterable of pairs; either may be an array.

    Returns:
        The pairs, and whether a single one was given.

    Raises:
        TypeError: If it is neither, or a text is not a string.
        ValueError: If something in the list is not a pair, or a text is not valid Unicode.
    """
    if not _is_ordered(sentence_pairs):
        raise TypeError(
            "sentence_pairs must be a pair of strings or a list of pairs, not "
            f"{_type(sentence_pairs)}"
        )
    listed = list(sentence_pairs)
    # Not of any iterable: a table of pairs gives the names of its two columns.
    may_be_one = isinstance(sentence_pairs, Sequence | np.ndarray)
    single = may_be_one and bool(listed) and isinstance(listed[0], str)
    pairs: list[tuple[str, str]] = []
    for index, given in enumerate([listed] if single else listed):
        pair = list(given) if _is_ordered(given) else []
        if len(pair) != 2:
            raise ValueError(
                f"sentence_pairs[{index}] must be a pair of a query and a passage, but is {given!r}"
            )
        for side, text in enumerate(pair):
            if not isinstance(text, str):
                raise TypeError(f"sentence_pairs[{index}] must hold strings, not {_type(text)}")
            # Here, since only the distinct texts of a batch reach the tokenizer.
            check_unicode(text, f"sentence_pairs[{index}][{side}]")
        pairs.append((pair[0], pair[1]))
    return pairs, single


def check_unicode(text: str, name: str) -> None:
    """Check that a text can be encoded.

    Raises:
        ValueError: If a half of a surrogate pair stands alone in it.
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
    """Check a count.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")
