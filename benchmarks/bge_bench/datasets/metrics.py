"""Exact search, and its scores as trec_eval defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK_SCORES = 1 << 24
"""Dot products in memory at once: 64 MB."""


def search(
    queries: NDArray[np.float32], corpus: NDArray[np.float32], *, depth: int
) -> NDArray[np.int64]:
    """Return the passages with the largest dot products for each query, by exact search.

    Args:
        queries: Shape: ``(n, dim)``.
        corpus: Shape: ``(m, dim)``.
        depth: Passages to find for each query.

    Returns:
        Rows of the corpus, nearest first; ties are in the order of the corpus. Shape: ``(n,
        min(depth, m))``.
    """
    depth = min(depth, len(corpus))
    found = np.empty((len(queries), depth), dtype=np.int64)
    rows = max(1, _BLOCK_SCORES // len(corpus))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ corpus.T
        last = np.partition(block, len(corpus) - depth, axis=1)[:, len(corpus) - depth]
        for number, (scores, limit) in enumerate(zip(block, last, strict=True), start=start):
            candidates = np.flatnonzero(scores >= limit)  # more than depth, if some are tied
            order = np.argsort(-scores[candidates], kind="stable")
            found[number] = candidates[order[:depth]]
    return found


def ndcg(
    found: NDArray[np.int64], grades: Sequence[Mapping[int, int]], *, at: int
) -> NDArray[np.float64]:
    """Return the normalized discounted cumulative gain of the first ``at`` passages.

    The gain of a passage is its grade, divided by the logarithm to base 2 of one more than
    its rank.

    Args:
        found: Passages in the order found. Shape: ``(n, depth)``.
        grades: For each query, the grade of each passage that has one; above 0 for at
            least one of them.
        at: How many passages count.

    Returns:
        Between 0 and 1 for each query. Shape: ``(n,)``.
    """
    discounts = 1 / np.log2(np.arange(2, at + 2))
    scores = np.empty(len(found))
    for number, (row, graded) in enumerate(zip(found[:, :at], grades, strict=True)):
        gains = np.array([max(graded.get(int(passage), 0), 0) for passage in row])
        ideal = np.sort([max(grade, 0) for grade in graded.values()])[::-1][:at]
        scores[number] = gains @ discounts[: len(gains)] / (ideal @ discounts[: len(ideal)])
    return scores


def recall(
    found: NDArray[np.int64], grades: Sequence[Mapping[int, int]], *, at: int
) -> NDArray[np.float64]:
    """Return the share of relevant passages among the first ``at``; arguments as for `ndcg`."""
    scores = np.empty(len(found))
    for number, (row, graded) in enumerate(zip(found[:, :at], grades, strict=True)):
        relevant = [passage for passage, grade in graded.items() if grade > 0]
        scores[number] = np.isin(relevant, row).mean()
    return scores


def reciprocal_rank(
    found: NDArray[np.int64], grades: Sequence[Mapping[int, int]], *, at: int
) -> NDArray[np.float64]:
    """Return 1 / rank of the first relevant passage, or 0 after ``at``; arguments as for `ndcg`."""
    scores = np.zeros(len(found))
    for number, (row, graded) in enumerate(zip(found[:, :at], grades, strict=True)):
        relevant = [graded.get(int(passage), 0) > 0 for passage in row]
        if any(relevant):
            scores[number] = 1 / (1 + relevant.index(True))
    return scores


def rank_correlation(values: NDArray[np.float64], gold: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; ties get the mean of their ranks."""
    from scipy.stats import spearmanr

    return float(spearmanr(values, gold).statistic)


def linear_correlation(values: NDArray[np.float64], gold: NDArray[np.float64]) -> float:
    """Return Pearson's correlation."""
    from scipy.stats import pearsonr

    return float(pearsonr(values, gold).statistic)
