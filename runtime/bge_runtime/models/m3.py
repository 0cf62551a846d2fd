"""``BGEM3FlagModel``: dense, lexical and ColBERT vectors from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.encoding import as_texts, check_positive
from bge_runtime.errors import BundleError
from bge_runtime.m3 import M3Output, SparseFormat, graph_outputs
from bge_runtime.models.m3_scores import M3Embedder
from bge_runtime.models.options import DEFAULT_LENGTH, CallDefaults, Devices, OpenOptions
from bge_runtime.sources import ENCODER_ONLY_BASE, ENCODER_ONLY_M3, HEAD_FILES


class BGEM3FlagModel(M3Embedder):
    """BGE-M3, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.BGEM3FlagModel``; keyword-only
    arguments are our own. Intended differences: an empty list returns empty
    results, scores of pairs do not depend on their batch (``clip_padded_colbert=True``
    returns FlagEmbedding's), and ColBERT scores are NumPy scalars.

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
        cache_dir: Folder of the Hub's cache.
        colbert_dim: Components of a ColBERT vector; another number than the model's
            is an error. -1 takes the model's.
        batch_size: Maximum texts in a batch.
        query_max_length: Tokens at which a query is cut, special tokens included.
        passage_max_length: The same for a passage, and for ``encode``.
        return_dense: Return dense vectors by default.
        return_sparse: Likewise, lexical weights.
        return_colbert_vecs: Likewise, ColBERT vectors.
        truncate_dim: Components of dense and ColBERT vectors to keep, before
            normalization.
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
        """Open a model; see the class for the arguments."""
        super().__init__(
            model_name_or_path,
            OpenOptions(
                devices=devices,
                use_fp16=use_fp16,
                use_bf16=use_bf16,
                pooling_method=pooling_method,
                trust_remote_code=trust_remote_code,
                cache_dir=cache_dir,
                engine=engine,
                precision=precision,
                threads=threads,
                revision=revision,
                cuda_graphs=cuda_graphs,
                parallel_batches=parallel_batches,
                outputs=graph_outputs(return_dense, return_sparse, return_colbert_vecs)
                or (SENTENCE_EMBEDDING,),
            ),
            CallDefaults(
                normalize_embeddings=normalize_embeddings,
                query_instruction_for_retrieval=query_instruction_for_retrieval,
                query_instruction_format=query_instruction_format,
                batch_size=batch_size,
                query_max_length=query_max_length,
                passage_max_length=passage_max_length,
                truncate_dim=truncate_dim,
            ),
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
            batch_size: Maximum texts in a batch; None for the model's.
            max_length: Maximum tokens of a text, up to 8192; None for
                ``passage_max_length``.
            return_dense: Return dense vectors; None for the model's choice.
            return_sparse: Return lexical weights; None for the model's choice.
            return_colbert_vecs: Return ColBERT vectors; None for the model's choice.
            sparse_format: ``"csr"`` returns the lexical weights as one SciPy matrix.
            instruction: Put before each text.
            instruction_format: How it is put there; needed with ``instruction``.
            convert_to_numpy: Accepted for compatibility; FlagEmbedding ignores it, too.
            pad_to_multiple_of: Accepted for compatibility; padding changes no vector.
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
        texts = self._add_instruction(texts, instruction, instruction_format)
        return self._encode(
            texts,
            self.target_devices[:1] if single else self.target_devices,
            single=single,
            batch_size=self.batch_size if batch_size is None else batch_size,
            max_length=self._length_for(
                self.passage_max_length if max_length is None else max_length,
                instruction,
                instruction_format,
            ),
            outputs=graph_outputs(
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
            outputs=graph_outputs(return_dense, return_sparse, return_colbert_vecs),
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
        self._check_truncate_dim()
        computed = self._compute(
            texts,
            self._plan(
                devices,
                outputs=outputs,
                batch_size=batch_size,
                max_length=self._readable_length(max_length),
                show_progress_bar=show_progress_bar,
            ),
            truncate_dim=self.truncate_dim,
            by_id=sparse_format == "csr",
        )
        return computed.format(dtype=self.vector_dtype, sparse_format=sparse_format, single=single)
