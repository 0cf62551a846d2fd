"""Write vectors as JSON: as numbers in their shortest form, or as base64."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bge_runtime.m3 import LexicalWeights

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY

_AT_ONCE = 1 << 14
"""Numbers that are written at once, in about 1 ms: other threads have their turn in between."""


def write(value: Any) -> bytes:
    """Return a value as JSON; it may hold arrays of NumPy."""
    return orjson.dumps(value, option=_OPTIONS)


async def write_list(items: Sequence[Any] | NDArray[Any], *, numbers: int) -> bytes:
    """Return a list as JSON, in a thread if it is long.

    Args:
        items: Its items, which may hold arrays of NumPy.
        numbers: Numbers in all of them, about.
    """
    if numbers <= _AT_ONCE:
        return write(items)
    return await asyncio.to_thread(_write_in_parts, items, numbers)


def _write_in_parts(items: Sequence[Any] | NDArray[Any], numbers: int) -> bytes:
    step = max(1, len(items) * _AT_ONCE // numbers)
    parts = []
    for start in range(0, len(items), step):
        part = items[start : start + step]
        parts.append(orjson.dumps(part, option=_OPTIONS)[1:-1])
    return b"[" + b",".join(parts) + b"]"


def as_base64(dtype: str) -> Callable[[NDArray[np.float32]], str]:
    """Return a function that writes an array as base64, in little-endian order.

    Args:
        dtype: ``"float32"`` or ``"float16"``.
    """
    layout = {"float32": "<f4", "float16": "<f2"}[dtype]
    return lambda array: base64.b64encode(array.astype(layout, copy=False).tobytes()).decode()


def as_float32(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return vectors as contiguous float32, which are written with the fewest digits."""
    return np.ascontiguousarray(vectors, dtype=np.float32)


def sparse_vectors(weights: LexicalWeights) -> list[dict[str, NDArray[Any]]]:
    """Return the token ids and weights of each text, as an answer has them."""
    return [{"indices": ids, "values": values} for ids, values in sparse_rows(weights)]


def sparse_rows(
    weights: LexicalWeights,
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Yield token ids and weights of each text."""
    bounds = weights.indptr.tolist()
    for start, end in pairwise(bounds):
        yield weights.token_ids[start:end], as_float32(weights.weights[start:end])
