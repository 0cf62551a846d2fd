"""From the graph's raw output to the vectors a caller gets, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EPSILON = np.float32(1e-12)
"""Smallest norm divided by, as in ``torch.nn.functional.normalize``."""


def truncate(vectors: NDArray[np.float32], dim: int | None) -> NDArray[np.float32]:
    """Keep the first components, as Matryoshka models allow (arXiv:2205.13147).

    Args:
        vectors: Shape: ``(..., width)``.
        dim: Components to keep; None, or more than there are, keeps all.

    Returns:
        A view. Shape: ``(..., min(dim, width))``.
    """
    return vectors if dim is None else vectors[..., :dim]


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each vector to unit length; a vector of zeros stays one.

    Args:
        vectors: Shape: ``(n, dim)``.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32))
    if not np.isfinite(norms).all():  # squares are too large from components of 1e19 on
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    unit: NDArray[np.float32] = vectors / np.maximum(norms, _EPSILON)[:, None]
    return unit.astype(np.float32, copy=False)


def find_not_finite(values: NDArray[Any], lengths: Sequence[int] | None = None) -> int | None:
    """Return the first row that holds NaN or infinity; None if there is none.

    Args:
        values: Shape: ``(n, …)``; or an array of arrays.
        lengths: Entries of each row to look at, along the second axis; what is behind them is
            padding. None for all.
    """
    if values.dtype != object and np.isfinite(values).all():
        return None
    for row, entries in enumerate(values):
        if not np.isfinite(entries if lengths is None else entries[: lengths[row]]).all():
            return row
    return None
