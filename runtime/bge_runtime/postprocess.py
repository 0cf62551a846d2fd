"""From the graph's raw output to the vectors a caller gets, in numpy."""

from __future__ import annotations

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
    unit: NDArray[np.float32] = vectors / np.maximum(norms, _EPSILON)[:, None]
    return unit
