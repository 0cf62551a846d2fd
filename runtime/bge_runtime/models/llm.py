"""``FlagLLMModel``: decoder embedders behind FlagEmbedding's own interface."""

from __future__ import annotations

from typing import Any, ClassVar

from bge_runtime.encoding import PrefixCache, TokenizationPlan
from bge_runtime.models.decoder import PREFIX_CACHE_MB, check_last_token, plan_with_prefix
from bge_runtime.models.dense import DenseEmbedder
from bge_runtime.models.options import DEFAULT_LENGTH, CallDefaults, Devices, OpenOptions
from bge_runtime.sources import DECODER_CLASSES


class FlagLLMModel(DenseEmbedder):
    """A decoder embedder, with the interface of FlagEmbedding 1.4.2's.

    Positional order, defaults and results follow ``FlagEmbedding.FlagLLMModel``; keyword-only
    arguments are our own. Intended differences: an empty list returns an empty
    array, one call computes each text once, what texts begin with is computed once for all
    calls, and a ``max_length`` that an instruction fills is an error.

    Args:
        model_name_or_path: As in `bge_runtime.FlagModel`.
        normalize_embeddings: Scale vectors to unit length.
        use_fp16: As in `bge_runtime.FlagModel`.
        use_bf16: As in `bge_runtime.FlagModel`.
        query_instruction_for_retrieval: Put before each text of ``encode_queries``.
        query_instruction_format: How instruction and query are joined: two ``{}``.
        devices: Device or devices. None means the CPU.
        trust_remote_code: As in `bge_runtime.FlagModel`.
        cache_dir: Folder of the Hub's cache.
        batch_size: Maximum texts in a batch.
        query_max_length: Tokens at which a query is cut, instruction and special tokens
            included.
        passage_max_length: The same for a passage, and for ``encode``.
        convert_to_numpy: False returns torch tensors, if torch is installed.
        truncate_dim: Components to keep, before normalization.
        pooling_method: ``"last_token"``, or None for it.
        engine: As in `bge_runtime.FlagModel`.
        precision: As in `bge_runtime.FlagModel`.
        threads: As in `bge_runtime.FlagModel`.
        revision: As in `bge_runtime.FlagModel`.
        prefix_cache_mb: Memory for keys and values of what texts begin with, the
            instruction say; see ``prefix_cache``. 0 reuses none. Vectors change by
            rounding only.
        **kwargs: As in `bge_runtime.FlagModel`.

    Raises:
        PoolingError: If ``pooling_method`` is another one.
        BundleError: If the model is an encoder, or its bundle is damaged.
        BgeError: As `bge_runtime.FlagModel`.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = DECODER_CLASSES

    def __init__(
        self,
        model_name_or_path: str,
        normalize_embeddings: bool = True,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "Instruct: {}\nQuery: {}",
        devices: Devices = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        batch_size: int = 256,
        query_max_length: int = DEFAULT_LENGTH,
        passage_max_length: int = DEFAULT_LENGTH,
        convert_to_numpy: bool = True,
        truncate_dim: int | None = None,
        *,
        pooling_method: str | None = None,
        engine: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
        prefix_cache_mb: int = PREFIX_CACHE_MB,
        **kwargs: Any,
    ) -> None:
        """Open a model; see the class for the arguments."""
        check_last_token(pooling_method)
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
                prefix_cache_mb=prefix_cache_mb,
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
        self.convert_to_numpy = convert_to_numpy
        self._keep_options(kwargs)

    @property
    def prefix_cache(self) -> PrefixCache:
        """Keys and values of common prefixes, kept between calls; see its ``stats``."""
        return self._engines.prefix_cache

    def _tokenization(
        self, max_length: int, instruction: str | None, instruction_format: str | None
    ) -> TokenizationPlan:
        return plan_with_prefix(
            self.tokenizer,
            instruction,
            instruction_format,
            max_length=self._readable_length(max_length),
            model_length=self.max_length,
        )
