"""ColBERT vectors of BGE-M3: one for each token of a text, and late interaction between them.

The score of a query and a passage is the mean, over the query's vectors, of the largest dot product
with a vector of the passage. Scores are FlagEmbedding's, except where those depend on which texts
were computed together: see `colbert_pair_scores`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import normalize as scale_to_unit_length
from bge_runtime.encoding import truncate

_BLOCK_PASSAGE_ROWS = 256
"""Rows up to which short passages are joined, for fewer and larger products."""

_BLOCK_QUERY_ROWS = 2048
"""Maximum query rows in one product: 64 MiB of scores for a passage of 8192 tokens."""

Vectors = NDArray[np.float32]
"""The vectors of one text. Shape: ``(tokens, dim)``."""


def colbert_vectors(
    raw: NDArray[np.float32],
    attention_mask: NDArray[np.int64],
    *,
    normalize: bool,
    dim: int | None,
) -> list[Vectors]:
    """Return one array for each text of a batch, without padding.

    The end token keeps its row, as in FlagEmbedding.

    Args:
        raw: The graph's output, which has no row for [CLS]; or an array of arrays of shape
            ``(tokens - 1, width)``. Shape: ``(texts, tokens - 1, width)``.
        attention_mask: 1 for a token, and 0 for padding, which is on the right.
            Shape: ``(texts, tokens)``.
        normalize: Scale each vector to unit length.
        dim: Components to keep, before scaling; None keeps all.

    Returns:
        Arrays that own their memory: keeping one does not keep the whole batch.
    """
    lengths = attention_mask.sum(axis=1) - 1
    rows = [
        truncate(vectors[:length], dim)
        for vectors, length in zip(raw, lengths.tolist(), strict=True)
    ]
    return [scale_to_unit_length(part) if normalize else part.copy() for part in rows]


def colbert_score(query: Vectors, passage: Vectors) -> np.float32:
    """Return the score of one query against one passage.

    Raises:
        ValueError: If one has no vectors, or their widths differ.
    """
    (score,) = colbert_scores(query, [passage])
    return np.float32(score)


def colbert_scores(query: Vectors, passages: Sequence[Vectors]) -> NDArray[np.float32]:
    """Return the scores of one query against many passages.

    Returns:
        Shape: ``(len(passages),)``.

    Raises:
        ValueError: If a text has no vectors, or widths differ.
    """
    scores: NDArray[np.float32] = colbert_score_matrix([query], passages)[0]
    return scores


def colbert_score_matrix(
    queries: Sequence[Vectors], passages: Sequence[Vectors]
) -> NDArray[np.float32]:
    """Return the scores of each query against each passage.

    Returns:
        Shape: ``(len(queries), len(passages))``.

    Raises:
        ValueError: If a text has no vectors, or widths differ.
    """
    queries = [np.asarray(query, dtype=np.float32) for query in queries]
    passages = [np.asarray(passage, dtype=np.float32) for passage in passages]
    _check([*queries, *passages])
    scores = np.empty((len(queries), len(passages)), dtype=np.float32)
    if not scores.size:
        return scores
    rows = _join(queries)
    lengths = np.array([len(query) for query in queries])
    starts = np.cumsum(lengths) - lengths
    for first, last in _blocks(passages):
        maxima = _maxima(rows, passages[first:last])
        sums = np.add.reduceat(maxima, starts, axis=1)
        scores[:, first:last] = (sums / lengths.astype(np.float32)).T
    return scores


def colbert_pair_scores(
    queries: Sequence[Vectors],
    passages: Sequence[Vectors],
    *,
    clip_negative: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Return the score of each query against the passage at the same position.

    In FlagEmbedding, the padding of a passage counts as vectors of zeros: a query token whose
    products are all negative scores 0 if the passage was in a batch with a longer one. Here it
    scores its true maximum.

    Args:
        queries: Vectors of each query.
        passages: Vectors of each passage.
        clip_negative: Passages to score as FlagEmbedding scores padded ones:
            see `padded_in_batches`. Shape: ``(n,)``.

    Returns:
        Shape: ``(n,)``.

    Raises:
        ValueError: If a text has no vectors, widths differ, or the lengths of the lists do.
    """
    if len(queries) != len(passages):
        raise ValueError(
            f"pairs need as many texts on both sides, not {len(queries)} and {len(passages)}"
        )
    _check([*queries, *passages])
    clipped = [False] * len(queries) if clip_negative is None else clip_negative.tolist()
    scores = np.empty(len(queries), dtype=np.float32)
    for index, (query, passage, clip) in enumerate(zip(queries, passages, clipped, strict=True)):
        (maxima,) = _maxima(np.asarray(query, np.float32), [np.asarray(passage, np.float32)])
        scores[index] = (np.maximum(maxima, 0) if clip else maxima).mean()
    return scores


def padded_in_batches(lengths: Sequence[int], *, batch_size: int) -> NDArray[np.bool_]:
    """Return which texts FlagEmbedding pads, in batches of ``batch_size`` in input order.

    Args:
        lengths: Tokens or vectors of each text; they are only compared.
        batch_size: FlagEmbedding's batch size.

    Returns:
        Whether a longer text is in the same batch. Shape: ``(len(lengths),)``.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        return np.zeros(0, dtype=np.bool_)
    starts = np.arange(0, len(sizes), batch_size)
    longest = np.maximum.reduceat(sizes, starts)
    return sizes < np.repeat(longest, batch_size)[: len(sizes)]


def _check(texts: Sequence[Vectors]) -> None:
    shapes = [np.shape(vectors) for vectors in texts]
    for shape in shapes:
        if len(shape) != 2 or not shape[0] or shape[1] != shapes[0][-1]:
            raise ValueError(
                "ColBERT vectors must be arrays of shape (tokens, dim), with at least one "
                f"token and the same dim throughout, but one has shape {shape}"
                + (f" and the first {shapes[0]}" if shape != shapes[0] else "")
            )


def _join(texts: Sequence[Vectors]) -> Vectors:
    return texts[0] if len(texts) == 1 else np.concatenate(texts)


def _blocks(passages: Sequence[Vectors]) -> Generator[tuple[int, int], None, None]:
    """Yield the runs of passages that are multiplied together; a long passage is alone."""
    first, rows = 0, 0
    for index, passage in enumerate(passages):
        if rows and rows + len(passage) > _BLOCK_PASSAGE_ROWS:
            yield first, index
            first, rows = index, 0
        rows += len(passage)
    yield first, len(passages)


def _maxima(rows: Vectors, passages: Sequence[Vectors]) -> NDArray[np.float32]:
    """Return the largest dot product of each query row within each passage.

    Returns:
        Shape: ``(len(passages), len(rows))``.
    """
    vectors = _join(passages)
    lengths = np.array([len(passage) for passage in passages])
    starts = np.cumsum(lengths) - lengths
    maxima = np.empty((len(passages), len(rows)), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK_QUERY_ROWS):
        part = slice(start, start + _BLOCK_QUERY_ROWS)
        products = vectors @ rows[part].T
        np.maximum.reduceat(products, starts, axis=0, out=maxima[:, part])
    return maxima
