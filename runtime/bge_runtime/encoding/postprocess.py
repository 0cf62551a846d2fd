"""From the raw outputs of a graph to the vectors a caller gets, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import NotFiniteError

_EPSILON = np.float32(1e-12)
"""Smallest divisor of a vector, as in ``torch.nn.functional.normalize``."""


def truncate(vectors: NDArray[np.float32], dim: int | None) -> NDArray[np.float32]:
    """Return the first components of vectors, as Matryoshka models allow (arXiv:2205.13147).

    Args:
        vectors: Shape: ``(..., width)``.
        dim: Components to keep; None, or more than there are, keeps all.

    Returns:
        A view. Shape: ``(..., min(dim, width))``.
    """
    return vectors if dim is None else vectors[..., :dim]


def normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors scaled to unit length; a vector of zeros stays as it is.

    Args:
        vectors: Shape: ``(n, dim)``.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float32))
    if not np.isfinite(norms).all():  # squares overflow from components of 1e19 on
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    unit: NDArray[np.float32] = vectors / np.maximum(norms, _EPSILON)[:, None]
    return unit.astype(np.float32, copy=False)


def round_vectors(
    vectors: NDArray[np.float32], dtype: np.dtype[Any], rows: NDArray[np.intp]
) -> NDArray[Any]:
    """Return vectors in the type that a caller gets; ``rows`` are their positions in the call.

    Raises:
        NotFiniteError: If a vector has a component that is too large for the type.
    """
    if vectors.dtype == dtype:
        return vectors
    with np.errstate(over="ignore"):
        rounded = vectors.astype(dtype)
    row = find_not_finite(rounded)
    if row is not None:
        raise NotFiniteError(
            f"text {rows[row]} has a vector with a component of {np.abs(vectors[row]).max():g}, "
            "which is too large for float16. Pass normalize_embeddings=True, or precision='fp32'"
        )
    return rounded


def find_not_finite(values: NDArray[Any], lengths: Sequence[int] | None = None) -> int | None:
    """Return the first row that holds NaN or infinity; None if there is none.

    Args:
        values: Shape: ``(n, ...)``; or an array of arrays.
        lengths: Entries of each row to look at, along the second axis; those behind them are
            padding. None for all.
    """
    if values.dtype != object and np.isfinite(values).all():
        return None
    for row, entries in enumerate(values):
        if not np.isfinite(entries if lengths is None else entries[: lengths[row]]).all():
            return row
    return None
