"""What BGE-M3 computes from its outputs: scores of pairs, and tokens for weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import EncodingPlan, TokenizationPlan, as_pairs, check_positive, encode
from bge_runtime.m3 import (
    M3Outputs,
    as_rows,
    checked_weights,
    colbert_score,
    combine_scores,
    graph_outputs,
    matching_scores,
    score_pairs,
)
from bge_runtime.models.base import BaseEmbedder
from bge_runtime.system import on_terminal


class M3Embedder(BaseEmbedder):
    """The scores of `bge_runtime.BGEM3FlagModel`, which adds constructor and ``encode``."""

    def convert_id_to_token(self, lexical_weights: Any) -> Any:
        """Replace the ids of lexical weights by their tokens.

        Args:
            lexical_weights: A dictionary, or a list of them.

        Returns:
            Likewise; as in FlagEmbedding, a list of one comes back as a dictionary, and of
            ids that decode alike the last one stays.

        Raises:
            TypeError: If they are something else.
        """
        decode = self.tokenizer.decode
        named = [
            {decode([int(key)]): weight for key, weight in row.items()}
            for row in as_rows(lexical_weights)
        ]
        return named[0] if len(named) == 1 else named

    @staticmethod
    def compute_lexical_matching_score(lexical_weights_1: Any, lexical_weights_2: Any) -> Any:
        """Sum, over shared tokens, the products of two texts' weights.

        Args:
            lexical_weights_1: A dictionary, a list of them, or a sparse matrix.
            lexical_weights_2: Likewise.

        Returns:
            The sum for two dictionaries, else a matrix with a row for each text of the
            first and a column for each of the second.

        Raises:
            ValueError: If one is a dictionary and the other is not.
        """
        return matching_scores(lexical_weights_1, lexical_weights_2)

    @staticmethod
    def colbert_score(q_reps: NDArray[np.float32], p_reps: NDArray[np.float32]) -> np.float32:
        """Score a query against a passage: the mean of each query token's best match.

        Args:
            q_reps: ColBERT vectors of the query. Shape: ``(query_tokens, dim)``.
            p_reps: ColBERT vectors of the passage. Shape: ``(passage_tokens, dim)``.
        """
        return colbert_score(q_reps, p_reps)

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        *,
        clip_padded_colbert: bool = False,
        show_progress_bar: bool | None = None,
    ) -> dict[str, Any] | list[Any]:
        """Score pairs of a query and a passage.

        Args:
            sentence_pairs: A pair, or a list of pairs.
            batch_size: Most texts in a batch; None for the model's.
            max_query_length: None for ``query_max_length``.
            max_passage_length: None for ``passage_max_length``.
            weights_for_different_modes: Of dense, sparse and ColBERT scores, in this
                order; None weighs them alike.
            clip_padded_colbert: Count padding as FlagEmbedding does; see
                `bge_runtime.m3.colbert.colbert_pair_scores`.
            show_progress_bar: None shows one for ``batch_size`` pairs or more, on a
                terminal.

        Returns:
            Scores by ``"colbert"``, ``"sparse"``, ``"dense"``, ``"sparse+dense"`` and
            ``"colbert+sparse+dense"``: a list each, or a number each for a single pair. An
            empty list for an empty list.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If something is not a pair, or the weights are not three numbers.
            NotFiniteError: If a vector holds NaN or infinity.
            InferenceError: If the engine fails.
        """
        return self._scores(
            sentence_pairs,
            self.target_devices,
            batch_size=batch_size,
            lengths=(max_query_length, max_passage_length),
            weights=weights_for_different_modes,
            clip_padded_colbert=clip_padded_colbert,
            show_progress_bar=show_progress_bar,
        )

    def _scores(
        self,
        sentence_pairs: Any,
        devices: Sequence[str],
        *,
        batch_size: int | None,
        lengths: tuple[int | None, int | None],
        weights: Sequence[float] | None,
        clip_padded_colbert: bool = False,
        show_progress_bar: bool | None = None,
    ) -> dict[str, Any] | list[Any]:
        weights = checked_weights(weights)
        pairs, single = as_pairs(sentence_pairs)
        if not pairs:
            return []
        batch_size = self.batch_size if batch_size is None else batch_size
        check_positive("batch_size", batch_size)
        readable = []
        for given, default in zip(
            lengths, (self.query_max_length, self.passage_max_length), strict=True
        ):
            length = default if given is None else given
            readable.append(self._readable_length(length))
        parts: list[tuple[NDArray[np.float32], ...]] = []
        # Vectors of all tokens are large: no more pairs are in memory than one batch.
        starts: Iterable[int] = range(0, len(pairs), batch_size)
        if show_progress_bar is None:
            show_progress_bar = len(pairs) > batch_size and on_terminal()
        if show_progress_bar:
            from tqdm import tqdm

            starts = tqdm(starts, desc="scoring", unit="batch")
        for start in starts:
            chunk = pairs[start : start + batch_size]
            sides = []
            for side, length in enumerate(readable):
                texts = [pair[side] for pair in chunk]
                unique = list(dict.fromkeys(texts))
                row_of = {text: row for row, text in enumerate(unique)}
                plan = self._plan(
                    devices,
                    outputs=graph_outputs(dense=True, sparse=True, colbert=True),
                    batch_size=batch_size,
                    max_length=length,
                    show_progress_bar=False,
                    describe_text=partial(_pair_of, texts, unique, start, side),
                )
                computed = self._compute(unique, plan, truncate_dim=None)
                sides.append((computed, np.array([row_of[text] for text in texts])))
            parts.append(score_pairs(*sides, clip=clip_padded_colbert))
        dense, sparse, colbert = (np.concatenate(part) for part in zip(*parts, strict=True))
        scores = combine_scores(dense, sparse, colbert, weights)
        return {mode: values[0] for mode, values in scores.items()} if single else scores

    def compute_score_single_device(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int = 256,
        max_query_length: int = 512,
        max_passage_length: int = 512,
        weights_for_different_modes: Sequence[float] | None = None,
        device: str | int | None = None,
    ) -> dict[str, Any] | list[Any]:
        """As `compute_score`, on one device that the model was opened on; None for the first."""
        return self._scores(
            sentence_pairs,
            [self._one_device(device)],
            batch_size=batch_size,
            lengths=(max_query_length, max_passage_length),
            weights=weights_for_different_modes,
        )

    def _plan(
        self,
        devices: Sequence[str],
        *,
        outputs: tuple[str, ...],
        batch_size: int,
        max_length: int,
        show_progress_bar: bool | None,
        describe_text: Callable[[int], str] = "text {}".format,
    ) -> EncodingPlan:
        return EncodingPlan(
            tokenization=TokenizationPlan(partial(self.tokenizer.encode, max_length=max_length)),
            outputs=outputs,
            batch_size=batch_size,
            devices=devices,
            show_progress_bar=show_progress_bar,
            describe_text=describe_text,
        )

    def _compute(
        self, texts: list[str], plan: EncodingPlan, *, truncate_dim: int | None, by_id: bool = False
    ) -> M3Outputs:
        outputs = M3Outputs(
            len(texts),
            plan.outputs,
            self.bundle.manifest.model,
            normalized=self.normalize_embeddings,
            truncate_dim=truncate_dim,
            by_id=by_id,
        )
        encode(texts, plan, self._engines, outputs.add)
        return outputs


def _pair_of(texts: list[str], unique: list[str], start: int, side: int, row: int) -> str:
    """Return the name of the first pair with this text, in a chunk that begins at ``start``."""
    return f"sentence_pairs[{start + texts.index(unique[row])}][{side}]"
