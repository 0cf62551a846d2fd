"""``BGEM3FlagModel``: dense, lexical and ColBERT vectors from one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime.bundle import COLBERT_VECS, SENTENCE_EMBEDDING, TOKEN_WEIGHTS
from bge_runtime.encoding import Batch, as_pairs, as_texts, check_positive, normalize, truncate
from bge_runtime.errors import BundleError
from bge_runtime.m3 import (
    LexicalWeights,
    as_rows,
    checked_weights,
    colbert_pair_scores,
    colbert_score,
    colbert_vectors,
    combine_scores,
    dense_pair_scores,
    lexical_pair_scores,
    matching_scores,
    padded_in_batches,
)
from bge_runtime.models.base import DEFAULT_LENGTH, Devices, FlagBase
from bge_runtime.models.embedder import TokenizationPlan
from bge_runtime.sources import ENCODER_ONLY_BASE, ENCODER_ONLY_M3, HEAD_FILES
from bge_runtime.system import on_terminal

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SparseFormat = Literal["dict", "csr"]
"""FlagEmbedding's dictionaries, or a SciPy matrix of shape ``(n, vocab_size)``."""


class M3Output(TypedDict):
    """What ``encode`` gives; what was not asked for is None.

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


class _Computed(NamedTuple):
    dense: NDArray[np.float32] | None
    lexical: LexicalWeights | None
    colbert: list[NDArray[np.float32]] | None


class BGEM3FlagModel(FlagBase):
    """BGE-M3, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.BGEM3FlagModel``; what is
    keyword-only here is our own. Differences, each on purpose: an empty list gives empty
    results, scores of pairs do not depend on their batch (``clip_padded_colbert=True``
    gives FlagEmbedding's), and ColBERT scores are NumPy scalars.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = (ENCODER_ONLY_M3,)

    @classmethod
    def check_class(cls, name: str, model_class: str) -> None:
        """Refuse a model without heads, as `bge_runtime.FlagModel` refuses a decoder.

        Raises:
            BundleError: If it has none, or is a decoder.
        """
        if model_class == ENCODER_ONLY_BASE:
            raise BundleError(
                f"{name} is a model of class {model_class} and has no heads for lexical weights "
                f"and ColBERT vectors, which {' and '.join(HEAD_FILES)} of a checkpoint hold. "
                "Open it with FlagModel, or take one that has them"
            )
        super().check_class(name, model_class)

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices = None,
        pooling_method: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        colbert_dim: int = -1,
        batch_size: int = 256,
        query_max_length: int = DEFAULT_LENGTH,
        passage_max_length: int = DEFAULT_LENGTH,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        *,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        cuda_graphs: bool = False,
        parallel_batches: bool = True,
        **kwargs: Any,
    ) -> None:
        """Open a model.

        Args:
            model_name_or_path: As in `bge_runtime.FlagModel`.
            normalize_embeddings: Scale dense and ColBERT vectors to unit length.
            use_fp16: As in `bge_runtime.FlagModel`.
            use_bf16: As in `bge_runtime.FlagModel`.
            query_instruction_for_retrieval: Put before each text of ``encode_queries``.
            query_instruction_format: How instruction and query are joined: two ``{}``.
            devices: Device or devices. None means the CPU.
            pooling_method: Of the dense vectors: ``"cls"``, ``"mean"`` or ``"last_token"``.
                None takes the bundle's; another one than the bundle's is an error.
            trust_remote_code: As in `bge_runtime.FlagModel`.
            cache_dir: Folder of the hub's cache.
            colbert_dim: Components of a ColBERT vector; another number than the model's
                is an error. -1 takes the model's.
            batch_size: Most texts in a batch.
            query_max_length: Tokens a query is cut to, special tokens included.
            passage_max_length: The same for a passage, and for ``encode``.
            return_dense: Whether calls that do not say give dense vectors.
            return_sparse: Likewise, lexical weights.
            return_colbert_vecs: Likewise, ColBERT vectors.
            truncate_dim: Components of dense and ColBERT vectors to keep, before
                normalisation.
            engine: As in `bge_runtime.FlagModel`.
            precision: As in `bge_runtime.FlagModel`.
            threads: As in `bge_runtime.FlagModel`.
            revision: As in `bge_runtime.FlagModel`.
            cuda_graphs: As in `bge_runtime.FlagModel`, where dense vectors alone are asked for.
            parallel_batches: As in `bge_runtime.FlagModel`.
            **kwargs: As in `bge_runtime.FlagModel`.

        Raises:
            BundleError: If the bundle has no heads, or is damaged.
            ValueError: If ``colbert_dim`` is not the model's.
            BgeError: As `bge_runtime.FlagModel`.
        """
        super().__init__(
            model_name_or_path,
            normalize_embeddings=normalize_embeddings,
            use_fp16=use_fp16,
            use_bf16=use_bf16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format,
            devices=devices,
            pooling_method=pooling_method,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            batch_size=batch_size,
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
            truncate_dim=truncate_dim,
            engine=engine,
            precision=precision,
            threads=threads,
            revision=revision,
            cuda_graphs=cuda_graphs,
            parallel_batches=parallel_batches,
            outputs=_outputs(return_dense, return_sparse, return_colbert_vecs)
            or (SENTENCE_EMBEDDING,),
        )
        width = self.bundle.manifest.model.colbert_dim
        if colbert_dim > 0 and colbert_dim != width:
            raise ValueError(
                f"requested colbert_dim={colbert_dim}, but the head of "
                f"{self.bundle.manifest.model.name} gives {width} components. Leave it out"
            )
        self.return_dense = return_dense
        self.return_sparse = return_sparse
        self.return_colbert_vecs = return_colbert_vecs
        self._keep_options(kwargs)

    def encode_queries(
        self,
        queries: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> M3Output:
        """Embed queries, with the query instruction if one was given.

        As `encode`, with ``query_max_length`` as the default length.
        """
        return self.encode(
            queries,
            batch_size=batch_size,
            max_length=self.query_max_length if max_length is None else max_length,
            return_dense=return_dense,
            return_sparse=return_sparse,
            return_colbert_vecs=return_colbert_vecs,
            **{**self._query_instruction(), **kwargs},
        )

    def encode_corpus(
        self,
        corpus: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        **kwargs: Any,
    ) -> M3Output:
        """Embed passages, with the passage instruction given to the constructor.

        As `encode`, with ``passage_max_length`` as the default length.
        """
        return self.encode(
            corpus,
            batch_size=batch_size,
            max_length=max_length,
            return_dense=return_dense,
            return_sparse=return_sparse,
            return_colbert_vecs=return_colbert_vecs,
            **{**self._passage_instruction(), **kwargs},
        )

    def encode(
        self,
        sentences: Sequence[str] | str,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        sparse_format: SparseFormat = "dict",
        instruction: str | None = None,
        instruction_format: str | None = None,
        convert_to_numpy: bool | None = None,  # noqa: ARG002
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> M3Output:
        """Embed texts in one pass.

        Values depend on the other texts of the call as little as those of `FlagModel.encode`.

        Args:
            sentences: As in `FlagModel.encode`.
            batch_size: Most texts in a batch; None for the model's.
            max_length: Most tokens of a text, up to 8192; None for
                ``passage_max_length``.
            return_dense: Give dense vectors; None for the model's choice.
            return_sparse: Give lexical weights; None for the model's choice.
            return_colbert_vecs: Give ColBERT vectors; None for the model's choice.
            sparse_format: ``"csr"`` gives the lexical weights as one SciPy matrix.
            instruction: Put before each text.
            instruction_format: How it is put there; needed with ``instruction``.
            convert_to_numpy: Taken for compatibility; FlagEmbedding ignores it, too.
            pad_to_multiple_of: Taken for compatibility; padding changes no vector.
            show_progress_bar: None shows one for ``batch_size`` texts or more, on a
                terminal.

        Returns:
            All three keys, whatever was asked for; see `M3Output`.

        Raises:
            TypeError: If a text is not a string, or the texts have no order.
            ValueError: If a number is out of range, nothing is asked for, or a text is
                not valid Unicode.
            NotFiniteError: If a result holds NaN or infinity.
            InferenceError: If the engine fails.
        """
        texts, single = as_texts(sentences, name="sentences")
        texts = self._instructed(texts, instruction, instruction_format)
        return self._encode(
            texts,
            self.target_devices[:1] if single else self.target_devices,
            single=single,
            batch_size=self.batch_size if batch_size is None else batch_size,
            max_length=self._length_for(
                self.passage_max_length if max_length is None else max_length,
                instruction,
                instruction_format,
                stacklevel=3,
            ),
            outputs=_outputs(
                self.return_dense if return_dense is None else return_dense,
                self.return_sparse if return_sparse is None else return_sparse,
                self.return_colbert_vecs if return_colbert_vecs is None else return_colbert_vecs,
            ),
            sparse_format=sparse_format,
            show_progress_bar=show_progress_bar,
        )

    def encode_single_device(
        self,
        sentences: Sequence[str] | str,
        batch_size: int = 256,
        max_length: int = 512,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        device: str | int | None = None,
        *,
        sparse_format: SparseFormat = "dict",
        convert_to_numpy: bool | None = None,  # noqa: ARG002
        pad_to_multiple_of: int | None = None,  # noqa: ARG002
        show_progress_bar: bool | None = None,
    ) -> M3Output:
        """Embed texts on one of the model's devices, without an instruction; as `encode`.

        Raises:
            ValueError: If the model was not opened on ``device``.
        """
        texts, single = as_texts(sentences, name="sentences")
        return self._encode(
            texts,
            [self._one_device(device)],
            single=single,
            batch_size=batch_size,
            max_length=max_length,
            outputs=_outputs(return_dense, return_sparse, return_colbert_vecs),
            sparse_format=sparse_format,
            show_progress_bar=show_progress_bar,
        )

    def encode_multi_process(
        self,
        sentences: Sequence[str],
        pool: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,
    ) -> M3Output:
        """Embed a list on all devices; ``pool`` is what `start_multi_process_pool` gave."""
        return self.encode(sentences, **kwargs)

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
            readable.append(self._readable_length(length, stacklevel=3))
        parts: list[tuple[NDArray[np.float32], ...]] = []
        # Vectors of all tokens are large: no more pairs at once than are asked for.
        starts = range(0, len(pairs), batch_size)
        if show_progress_bar is None:
            show_progress_bar = len(starts) > 1 and on_terminal()
        for start in tqdm(starts, desc="scoring", unit="batch") if show_progress_bar else starts:
            chunk = pairs[start : start + batch_size]
            sides = []
            for side, length in enumerate(readable):
                texts = [pair[side] for pair in chunk]
                unique = list(dict.fromkeys(texts))
                row_of = {text: row for row, text in enumerate(unique)}
                computed = self._compute(
                    unique,
                    devices,
                    outputs=_outputs(dense=True, sparse=True, colbert=True),
                    batch_size=batch_size,
                    max_length=length,
                    truncate_dim=None,
                    show_progress_bar=False,
                    place=partial(_pair_of, texts, unique, start, side),
                )
                sides.append((computed, np.array([row_of[text] for text in texts])))
            parts.append(_pair_scores(*sides, clip=clip_padded_colbert))
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

    def _encode(
        self,
        texts: list[str],
        devices: Sequence[str],
        *,
        single: bool,
        batch_size: int,
        max_length: int,
        outputs: tuple[str, ...],
        sparse_format: SparseFormat,
        show_progress_bar: bool | None,
    ) -> M3Output:
        if not outputs:
            raise ValueError(
                "nothing is asked for: set at least one of return_dense, return_sparse and "
                "return_colbert_vecs"
            )
        if sparse_format not in ("dict", "csr"):
            raise ValueError(f"sparse_format must be 'dict' or 'csr', but is {sparse_format!r}")
        check_positive("batch_size", batch_size)
        self._check_truncate_dim(stacklevel=4)
        found = self._compute(
            texts,
            devices,
            outputs=outputs,
            batch_size=batch_size,
            max_length=self._readable_length(max_length, stacklevel=4),
            truncate_dim=self.truncate_dim,
            show_progress_bar=show_progress_bar,
            by_id=sparse_format == "csr",
        )
        weights: Any = None
        if found.lexical is not None and sparse_format == "csr":
            weights = self._csr(found.lexical)
        elif found.lexical is not None:
            dictionaries = found.lexical.astype(self.vector_dtype).to_dicts()
            weights = dictionaries[0] if single else dictionaries
        dense, colbert = found.dense, found.colbert
        if dense is not None:
            dense = self._rounded(dense, np.arange(len(dense)))
        return {
            "dense_vecs": dense[0] if single and dense is not None else dense,
            "lexical_weights": weights,
            "colbert_vecs": colbert[0] if single and colbert is not None else colbert,
        }

    def _csr(self, weights: LexicalWeights) -> csr_array:
        return weights.to_csr(self.bundle.manifest.model.vocab_size)

    def _compute(
        self,
        texts: list[str],
        devices: Sequence[str],
        *,
        outputs: tuple[str, ...],
        batch_size: int,
        max_length: int,
        truncate_dim: int | None,
        show_progress_bar: bool | None,
        by_id: bool = False,
        place: Callable[[int], str] = "text {}".format,
    ) -> _Computed:
        model = self.bundle.manifest.model
        scale = self.normalize_embeddings
        width = min(truncate_dim or model.dim, model.dim)
        dense = np.empty((len(texts), width), dtype=np.float32)
        lexical: list[tuple[NDArray[np.intp], LexicalWeights]] = []
        colbert: list[NDArray[np.float32]] = [dense] * len(texts)

        def take(batch: Batch, arrays: list[NDArray[np.float32]]) -> None:
            raw = dict(zip(outputs, arrays, strict=True))
            if SENTENCE_EMBEDDING in raw:
                rows = truncate(raw[SENTENCE_EMBEDDING], truncate_dim)
                dense[batch.rows] = normalize(rows) if scale else rows
            if TOKEN_WEIGHTS in raw:
                weights = LexicalWeights.from_tokens(
                    raw[TOKEN_WEIGHTS],
                    batch.input_ids,
                    batch.attention_mask,
                    excluded=model.weightless_token_ids,
                    by_id=by_id,
                )
                lexical.append((batch.rows, weights))
            if COLBERT_VECS in raw:
                vectors = colbert_vectors(
                    raw[COLBERT_VECS], batch.attention_mask, normalize=scale, dim=truncate_dim
                )
                for row, tokens in zip(batch.rows.tolist(), vectors, strict=True):
                    colbert[row] = tokens

        self._run(
            texts,
            take,
            reading=TokenizationPlan(partial(self.tokenizer.encode, max_length=max_length)),
            outputs=outputs,
            batch_size=batch_size,
            devices=devices,
            show_progress_bar=show_progress_bar,
            place=place,
        )
        order = np.concatenate([np.empty(0, np.intp), *(rows for rows, _ in lexical)])
        return _Computed(
            dense=dense if SENTENCE_EMBEDDING in outputs else None,
            lexical=LexicalWeights.concatenate([part for _, part in lexical], order)
            if TOKEN_WEIGHTS in outputs
            else None,
            colbert=colbert if COLBERT_VECS in outputs else None,
        )


def _outputs(dense: bool, sparse: bool, colbert: bool) -> tuple[str, ...]:
    asked = ((SENTENCE_EMBEDDING, dense), (TOKEN_WEIGHTS, sparse), (COLBERT_VECS, colbert))
    return tuple(name for name, wanted in asked if wanted)


def _pair_of(texts: list[str], unique: list[str], start: int, side: int, row: int) -> str:
    """Name the first pair that has a distinct text of a chunk, which begins at ``start``."""
    return f"sentence_pairs[{start + texts.index(unique[row])}][{side}]"


def _pair_scores(
    queries: tuple[_Computed, NDArray[np.intp]],
    passages: tuple[_Computed, NDArray[np.intp]],
    *,
    clip: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    (query, of_query), (passage, of_passage) = queries, passages
    assert query.dense is not None and passage.dense is not None  # noqa: PT018
    assert query.lexical is not None and passage.lexical is not None  # noqa: PT018
    assert query.colbert is not None and passage.colbert is not None  # noqa: PT018
    tokens = [passage.colbert[row] for row in of_passage]
    lengths = [len(vectors) for vectors in tokens]
    return (
        dense_pair_scores(query.dense[of_query], passage.dense[of_passage]),
        lexical_pair_scores(query.lexical.take(of_query), passage.lexical.take(of_passage)),
        colbert_pair_scores(
            [query.colbert[row] for row in of_query],
            tokens,
            clip_negative=padded_in_batches(lengths, batch_size=len(lengths)) if clip else None,
        ),
    )
