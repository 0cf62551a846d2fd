"""The five scores of a pair of texts in ``compute_score`` of BGE-M3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def dense_pair_scores(
    queries: NDArray[np.float32], passages: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the dot product of each row with the same row of the other side.

    Args:
        queries: Shape: ``(n, dim)``.
        passages: The same shape.

    Returns:
        Shape: ``(n,)``.
    """
    scores: NDArray[np.float32] = np.einsum("nd,nd->n", queries, passages)
    return scores


def checked_weights(weights: Sequence[float] | None) -> tuple[float, float, float]:
    """Return ``weights_for_different_modes``, checked before anything is computed.

    Args:
        weights: Of the dense, sparse and ColBERT scores, in this order; None for ones.

    Raises:
        ValueError: If they are not three finite numbers, or sum to zero.
    """
    if weights is None:
        return 1.0, 1.0, 1.0
    try:
        dense, sparse, colbert = (float(weight) for weight in weights)
        usable = bool(np.isfinite([dense, sparse, colbert]).all()) and dense + sparse + colbert != 0
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise ValueError(
            "weights_for_different_modes must be three numbers, for dense, sparse and ColBERT "
            f"scores, that do not sum to zero, but is {weights!r}"
        )
    return dense, sparse, colbert


def combine_scores(
    dense: NDArray[np.float32],
    sparse: NDArray[np.float32],
    colbert: NDArray[np.float32],
    weights: tuple[float, float, float],
) -> dict[str, list[float]]:
    """Return the scores of all modes and their weighted means.

    Args:
        dense: Shape: ``(n,)``.
        sparse: The same shape.
        colbert: The same shape.
        weights: From `checked_weights`.

    Returns:
        Scores by FlagEmbedding's keys, in its order. As there, "sparse+dense" is NaN where its two
        weights sum to zero.
    """
    for_dense, for_sparse, for_colbert = weights
    two = sparse * np.float32(for_sparse) + dense * np.float32(for_dense)
    three = colbert * np.float32(for_colbert) + two
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "colbert": colbert.tolist(),
            "sparse": sparse.tolist(),
            "dense": dense.tolist(),
            "sparse+dense": (two / np.float32(for_sparse + for_dense)).tolist(),
            "colbert+sparse+dense": (three / np.float32(sum(weights))).tolist(),
        }
