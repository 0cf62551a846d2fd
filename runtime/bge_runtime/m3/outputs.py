"""The three outputs of BGE-M3, collected batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import COLBERT_VECS, SENTENCE_EMBEDDING, TOKEN_WEIGHTS, Model
from bge_runtime.encoding import Batch, normalize, round_vectors, truncate
from bge_runtime.m3.colbert import colbert_pair_scores, colbert_vectors, padded_in_batches
from bge_runtime.m3.lexical import LexicalWeights, lexical_pair_scores
from bge_runtime.m3.scoring import dense_pair_scores

SparseFormat = Literal["dict", "csr"]
"""FlagEmbedding's dictionaries, or a SciPy matrix of shape ``(n, vocab_size)``."""


class M3Output(TypedDict):
    """What ``encode`` returns; an output that was not asked for is None.

    Keys:
        dense_vecs: float32, or float16 where a GPU computes in fp16, as the weights in
            dictionaries. Shape: ``(n, dim)``, or ``(dim,)`` for a single text.
        lexical_weights: For each text a dictionary from token id, as a string, to its
            weight; or all of them as a matrix. A single dictionary for a single text.
        colbert_vecs: For each text the vectors of its tokens but [CLS], float32. Shape:
            ``(tokens - 1, colbert_dim)``. A single array for a single text.
    """

    dense_vecs: NDArray[np.float32] | None
    lexical_weights: Any
    colbert_vecs: Any


def graph_outputs(dense: bool, sparse: bool, colbert: bool) -> tuple[str, ...]:
    """Return the names of the graph's outputs that are asked for."""
    asked = ((SENTENCE_EMBEDDING, dense), (TOKEN_WEIGHTS, sparse), (COLBERT_VECS, colbert))
    return tuple(name for name, wanted in asked if wanted)


class M3Outputs:
    """The outputs of a call, in input order once all batches are added."""

    def __init__(
        self,
        count: int,
        names: Sequence[str],
        model: Model,
        *,
        normalized: bool,
        truncate_dim: int | None,
        by_id: bool,
    ) -> None:
        """Allocate the outputs.

        Args:
            count: Number of texts.
            names: Names of the graph's outputs, in the order of a batch's.
            model: What the bundle says of the model.
            normalized: Scale dense and ColBERT vectors to unit length.
            truncate_dim: Components of both to keep; None for all.
            by_id: Sort each text's weights by token id, as a matrix needs them.
        """
        self._names, self._model = names, model
        self._normalized, self._truncate_dim, self._by_id = normalized, truncate_dim, by_id
        width = min(truncate_dim or model.dim, model.dim)
        # Zero, since a text that is rejected leaves its row as it is.
        self._dense = np.zeros((count, width), dtype=np.float32)
        self._lexical: list[tuple[NDArray[np.intp], LexicalWeights]] = []
        self._colbert: list[NDArray[np.float32]] = [self._dense] * count

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        """Keep the outputs of a batch."""
        raw = dict(zip(self._names, outputs, strict=True))
        if SENTENCE_EMBEDDING in raw:
            rows = truncate(raw[SENTENCE_EMBEDDING], self._truncate_dim)
            self._dense[batch.rows] = normalize(rows) if self._normalized else rows
        if TOKEN_WEIGHTS in raw:
            weights = LexicalWeights.from_tokens(
                raw[TOKEN_WEIGHTS],
                batch.input_ids,
                batch.attention_mask,
                excluded=self._model.weightless_token_ids,
                by_id=self._by_id,
            )
            self._lexical.append((batch.rows, weights))
        if COLBERT_VECS in raw:
            vectors = colbert_vectors(
                raw[COLBERT_VECS],
                batch.attention_mask,
                normalize=self._normalized,
                dim=self._truncate_dim,
            )
            for row, tokens in zip(batch.rows.tolist(), vectors, strict=True):
                self._colbert[row] = tokens

    @property
    def names(self) -> Sequence[str]:
        """Names of the graph's outputs, in the order of a batch's."""
        return self._names

    @property
    def dense(self) -> NDArray[np.float32] | None:
        """One vector for each text, in float32; None if not asked for."""
        return self._dense if SENTENCE_EMBEDDING in self._names else None

    @property
    def colbert(self) -> list[NDArray[np.float32]] | None:
        """The vectors of each text's tokens; None if not asked for."""
        return self._colbert if COLBERT_VECS in self._names else None

    def lexical(self) -> LexicalWeights | None:
        """Return the weights of all texts; None if not asked for."""
        if TOKEN_WEIGHTS not in self._names:
            return None
        order = np.concatenate([np.empty(0, np.intp), *(rows for rows, _ in self._lexical)])
        return LexicalWeights.concatenate([part for _, part in self._lexical], order)

    def format(
        self, *, dtype: np.dtype[Any], sparse_format: SparseFormat, single: bool
    ) -> M3Output:
        """Return the outputs as the call asked for them.

        Args:
            dtype: Type of dense vectors, and of the weights in dictionaries.
            sparse_format: Dictionaries, or one SciPy matrix.
            single: Whether the call was about a single text.

        Raises:
            NotFiniteError: If a dense vector has a component that is too large for ``dtype``.
        """
        found, weights = self.lexical(), None
        if found is not None and sparse_format == "csr":
            weights = found.to_csr(self._model.vocab_size)
        elif found is not None:
            dictionaries = found.astype(dtype).to_dicts()
            weights = dictionaries[0] if single else dictionaries
        dense, colbert = self.dense, self.colbert
        if dense is not None:
            dense = round_vectors(dense, dtype, np.arange(len(dense)))
        return {
            "dense_vecs": dense[0] if single and dense is not None else dense,
            "lexical_weights": weights,
            "colbert_vecs": colbert[0] if single and colbert is not None else colbert,
        }


def score_pairs(
    queries: tuple[M3Outputs, NDArray[np.intp]],
    passages: tuple[M3Outputs, NDArray[np.intp]],
    *,
    clip: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return dense, lexical and ColBERT scores of pairs.

    Args:
        queries: All outputs of the distinct queries, and the row of each pair's query.
        passages: Likewise.
        clip: Count padding as FlagEmbedding does; see `colbert_pair_scores`.
    """
    (query, of_query), (passage, of_passage) = queries, passages
    query_weights, passage_weights = query.lexical(), passage.lexical()
    assert query.dense is not None and passage.dense is not None  # noqa: PT018
    assert query_weights is not None and passage_weights is not None  # noqa: PT018
    assert query.colbert is not None and passage.colbert is not None  # noqa: PT018
    tokens = [passage.colbert[row] for row in of_passage]
    lengths = [len(vectors) for vectors in tokens]
    return (
        dense_pair_scores(query.dense[of_query], passage.dense[of_passage]),
        lexical_pair_scores(query_weights.take(of_query), passage_weights.take(of_passage)),
        colbert_pair_scores(
            [query.colbert[row] for row in of_query],
            tokens,
            clip_negative=padded_in_batches(lengths, batch_size=len(lengths)) if clip else None,
        ),
    )
