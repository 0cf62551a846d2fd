"""What users pass, checked: devices, texts, pairs of them, and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

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
    if isinstance(texts, bytes | Mapping | AbstractSet) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a string or a list of strings, not {_type(texts)}")
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a string, not {_type(text)}")
    return listed, False


def _type(value: object) -> str:
    return "None" if value is None else type(value).__name__


def as_pairs(sentence_pairs: Any) -> tuple[list[tuple[str, str]], bool]:
    """Check and list the pairs of a call.

    Args:
        sentence_pairs: A pair of strings, or a list of pairs.

    Returns:
        The pairs, and whether a single one was given.

    Raises:
        TypeError: If it is neither, or a text is not a string.
        ValueError: If something in the list is not a pair.
    """
    if isinstance(sentence_pairs, str | bytes | Mapping) or not isinstance(
        sentence_pairs, Sequence
    ):
        raise TypeError(
            "sentence_pairs must be a pair of strings or a list of pairs, not "
            f"{type(sentence_pairs).__name__}"
        )
    single = bool(sentence_pairs) and isinstance(sentence_pairs[0], str)
    pairs: list[tuple[str, str]] = []
    for index, pair in enumerate([sentence_pairs] if single else sentence_pairs):
        if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(
                f"sentence_pairs[{index}] must be a pair of a query and a passage, but is {pair!r}"
            )
        for text in pair:
            if not isinstance(text, str):
                raise TypeError(
                    f"sentence_pairs[{index}] must hold strings, not {type(text).__name__}"
                )
        pairs.append((pair[0], pair[1]))
    return pairs, single


def check_positive(name: str, value: object) -> None:
    """Check a count.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")
