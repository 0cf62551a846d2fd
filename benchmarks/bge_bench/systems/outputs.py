"""Compare what systems return: vectors of texts, or scores of pairs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.systems.base import Item
from bge_runtime.bundle import (
    SCORE_TOLERANCES,
    TOLERANCES,
    Parity,
    ScoreParity,
    compare,
    compare_scores,
)

AnyParity = Parity | ScoreParity

_OTHER_VECTORS = 0.5
"""Error, as a share of the distance between texts, at which vectors are another model's."""


def compare_outputs(
    outputs: NDArray[np.float32], expected: NDArray[np.float32], *, reranks: bool
) -> AnyParity:
    """Return the parity of what `System.encode` returned with the reference's.

    Args:
        outputs: Vectors, or logits. Shape: ``(n, dim)`` or ``(n, 1)``.
        expected: The reference's, of the same shape.
        reranks: Whether they are a reranker's logits.
    """
    return compare_scores(outputs[:, 0], expected[:, 0]) if reranks else compare(outputs, expected)


def tolerance(parity: AnyParity, precision: str) -> dict[str, Any]:
    """Return the limits of a precision that a parity is held to, ready for JSON."""
    limits = TOLERANCES if isinstance(parity, Parity) else SCORE_TOLERANCES
    return asdict(limits[precision])


def is_void(parity: AnyParity, precision: str, *, ours: bool) -> bool:
    """Return whether a system's figures mean nothing, since its outputs are not the reference's.

    A baseline in int8 may miss the limits: how near its makers' int8 comes is part of a comparison.
    """
    if not parity.failures(precision):
        return False
    if ours or precision != "int8" or not isinstance(parity, Parity):
        return True
    return not parity.error_share <= _OTHER_VECTORS  # NaN is none


def characters(item: Item) -> int:
    """Return the length of a text, or of both texts of a pair."""
    return len(item) if isinstance(item, str) else sum(map(len, item))
