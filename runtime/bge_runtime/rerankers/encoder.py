"""``FlagReranker``: encoders that score pairs, behind FlagEmbedding's own interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from bge_runtime.bundle import LOGITS
from bge_runtime.encoding import PairEncoder, PairTokenizer
from bge_runtime.models import DEFAULT_LENGTH, Devices, OpenOptions
from bge_runtime.rerankers.base import BaseReranker, RerankerDefaults
from bge_runtime.sources import RERANKER_ENCODER


class FlagReranker(BaseReranker):
    """A BERT or XLM-R cross-encoder, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.FlagReranker``; keyword-only
    arguments are our own. Intended differences: an empty list returns an empty list, several
    devices return a list as one does, each pair of a call is computed once, and a pair never
    exceeds ``max_length``, also where its query alone does.

    Args:
        model_name_or_path: As in `bge_runtime.FlagModel`.
        use_fp16: Allow 16 bit where the device computes in it and parity was measured. False, as in
            FlagEmbedding the default, requires fp32.
        query_instruction_for_rerank: Put before each query.
        query_instruction_format: How instruction and query are joined: two ``{}``.
        passage_instruction_for_rerank: Put before each passage.
        passage_instruction_format: How instruction and passage are joined: two ``{}``.
        trust_remote_code: As in `bge_runtime.FlagModel`.
        cache_dir: Folder of the Hub's cache.
        devices: Device or devices. None means the CPU.
        batch_size: Maximum pairs in a batch. Batches are filled by tokens, so most have fewer;
            scores change by rounding only.
        query_max_length: Tokens at which a query is cut; None for three quarters of ``max_length``.
        max_length: Tokens at which a pair is cut, at the end of the passage.
        normalize: Return the sigmoid of each score, between 0 and 1.
        use_bf16: Require bf16; takes precedence over ``use_fp16``.
        engine: As in `bge_runtime.FlagModel`.
        precision: Name of a precision, or ``"auto"`` for the fastest that keeps parity; takes
            precedence over ``use_fp16`` and ``use_bf16``.
        threads: As in `bge_runtime.FlagModel`.
        revision: As in `bge_runtime.FlagModel`.
        parallel_batches: As in `bge_runtime.FlagModel`.
        **kwargs: As in FlagEmbedding, any other becomes an attribute; here it also raises a
            warning.

    Raises:
        BundleError: If the model is an embedder or a decoder, or its bundle is damaged.
        BgeError: As `bge_runtime.FlagModel`.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = (RERANKER_ENCODER,)

    def __init__(
        self,
        model_name_or_path: str,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: Devices = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = DEFAULT_LENGTH,
        normalize: bool = False,
        *,
        use_bf16: bool = False,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        parallel_batches: bool = True,
        **kwargs: Any,
    ) -> None:
        """Open a reranker; see the class for the arguments."""
        super().__init__(
            model_name_or_path,
            OpenOptions(
                devices=devices,
                use_fp16=use_fp16,
                use_bf16=use_bf16,
                pooling_method=None,
                trust_remote_code=trust_remote_code,
                cache_dir=cache_dir,
                engine=engine,
                precision=precision,
                threads=threads,
                revision=revision,
                parallel_batches=parallel_batches,
                outputs=(LOGITS,),
            ),
            RerankerDefaults(
                query_instruction_for_rerank=query_instruction_for_rerank,
                query_instruction_format=query_instruction_format,
                passage_instruction_for_rerank=passage_instruction_for_rerank,
                passage_instruction_format=passage_instruction_format,
                batch_size=batch_size,
                query_max_length=query_max_length,
                max_length=max_length,
                normalize=normalize,
            ),
        )
        self._keep_options(kwargs)

    def compute_score_single_gpu(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        device: str | int | None = None,
    ) -> list[float]:
        """As `compute_score`, on one device that the model was opened on; None for the first."""
        call = self._call(
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            normalize=normalize,
            devices=[self._one_device(device)],
        )
        return self._score_pairs(sentence_pairs, call)

    def _pair_encoder(self, prompt: str | None) -> PairEncoder:
        assert prompt is None, "encoders are not asked a question"
        return self._pairs

    @cached_property
    def _pairs(self) -> PairTokenizer:
        graphs = self.bundle.manifest.graphs.values()
        types = any("token_type_ids" in graph.inputs for graph in graphs)
        return PairTokenizer(self.tokenizer, token_types=types)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_pairs", None)
        return state
