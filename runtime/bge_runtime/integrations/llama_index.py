"""LlamaIndex: ``BgeEmbedding``, ``BgeM3SparseEmbedding`` and ``BgeReranker``."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from bge_runtime.encoding import as_text_list
from bge_runtime.integrations import not_installed
from bge_runtime.integrations._models import (
    as_lists,
    check_m3,
    dense_vectors,
    lexical_weights,
    open_model,
)
from bge_runtime.integrations._rerankers import open_reranker
from bge_runtime.models import AnyFlagModel
from bge_runtime.rerankers import AnyReranker
from bge_runtime.stores import to_milvus_sparse

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
    from llama_index.core.bridge.pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        PrivateAttr,
        model_validator,
    )
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise not_installed("llama-index", error) from error


class _Bge(BaseModel):
    """What both classes share: a model, and LlamaIndex's methods on top of one of ours."""

    # LlamaIndex's own base classes ignore unknown arguments.
    model_config = ConfigDict(extra="forbid")

    model_name: str
    # LlamaIndex's default of 10 would not fill a batch.
    embed_batch_size: int = Field(default=256, gt=0, le=2048)
    query_instruction: str | None = None
    text_instruction: str | None = None
    max_length: int | None = None
    device: str | None = None
    cache_folder: str | None = None
    trust_remote_code: bool = False
    show_progress_bar: bool = False
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _model: AnyFlagModel = PrivateAttr()

    @model_validator(mode="before")  # type: ignore[untyped-decorator]
    @classmethod
    def _check_arguments(cls, arguments: Any) -> Any:
        """Drop arguments of ``HuggingFaceEmbedding`` with default values; reject unknown ones."""
        if not isinstance(arguments, Mapping):
            return arguments
        kept = dict(arguments)
        for name, default in (("parallel_process", False), ("target_devices", None)):
            if kept.pop(name, default) != default:
                raise ValueError(
                    f"{name} is not supported: one process uses all cores. Several devices go into "
                    "model_kwargs={'devices': [...]}"
                )
        unknown = sorted(set(kept) - set(cls.model_fields) - {"class_name"})
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no argument {', '.join(map(repr, unknown))}. Arguments of "
                f"the model go into model_kwargs={{{unknown[0]!r}: ...}}; its own are "
                f"{', '.join(cls.model_fields)}"
            )
        return kept

    def model_post_init(self, context: Any, /) -> None:
        """Open the model.

        Raises:
            ValueError: If an argument is given twice, or would have no effect.
            BgeError: As `bge_runtime.FlagModel`.
        """
        super().model_post_init(context)
        given: dict[str, Any] = {
            name: value
            for name, value in (
                ("device", self.device),
                ("cache_folder", self.cache_folder),
                ("trust_remote_code", self.trust_remote_code or None),
            )
            if value is not None
        }
        if twice := sorted(set(given) & set(self.model_kwargs)):
            raise ValueError(f"{', '.join(twice)} is given twice, once in model_kwargs")
        self._model = open_model(
            self.model_name,
            query_instruction=self.query_instruction,
            **given,
            **self.model_kwargs,
        )

    @property
    def model(self) -> AnyFlagModel:
        """The model. ``model.engine.info`` shows the engine in force."""
        return self._model

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores it."""
        return cls.__name__

    def _encode_options(self, *, queries: bool) -> dict[str, Any]:
        return {
            "queries": queries,
            "prompt": self.text_instruction,
            "max_length": self.max_length,
            # None depends on the number of texts and the terminal.
            "show_progress_bar": self.show_progress_bar or None,
        }

    @abstractmethod
    def _embed(self, texts: list[str], *, queries: bool) -> list[Any]:
        """Return the embeddings in LlamaIndex's type."""

    def _get_query_embedding(self, query: str) -> Any:
        return self._embed([query], queries=True)[0]

    def _get_text_embedding(self, text: str) -> Any:
        return self._embed([text], queries=False)[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Any]:
        return self._embed(texts, queries=False)

    # LlamaIndex would iterate over any argument of these, even a string or a table.

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Embed texts, as in LlamaIndex, but only a list of strings."""
        return super().get_text_embedding_batch(  # type: ignore[no-any-return]
            as_text_list(texts, name="texts"), show_progress, **kwargs
        )

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Any]:
        """Embed texts, as in LlamaIndex, but only a list of strings."""
        return await super().aget_text_embedding_batch(  # type: ignore[no-any-return]
            as_text_list(texts, name="texts"), show_progress, **kwargs
        )

    def get_agg_embedding_from_queries(self, queries: list[str], agg_fn: Any = None) -> Any:
        """Embed queries together, as in LlamaIndex, but only a list of strings."""
        return super().get_agg_embedding_from_queries(as_text_list(queries, name="queries"), agg_fn)

    async def aget_agg_embedding_from_queries(self, queries: list[str], agg_fn: Any = None) -> Any:
        """Embed queries together, as in LlamaIndex, but only a list of strings."""
        return await super().aget_agg_embedding_from_queries(
            as_text_list(queries, name="queries"), agg_fn
        )

    async def _aget_query_embedding(self, query: str) -> Any:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Any:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Any]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class BgeEmbedding(_Bge, BaseEmbedding):
    """Dense vectors for LlamaIndex, in fp32 by default.

    The asynchronous methods compute in a thread.

    Attributes:
        model_name: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagModel`.
        embed_batch_size: Texts that LlamaIndex passes at a time. Batches are then formed by
            tokens.
        query_instruction: Put before each query. None for the one that the model's authors
            recommend, ``""`` for none.
        text_instruction: Put before each other text. None for the model folder's prompt.
        max_length: Tokens that a text is cut to; None for the model folder's setting.
        normalize: Scale vectors to unit length, even if the model folder's settings do not.
        device: Where to compute; None for the CPU.
        cache_folder: Folder of the hub's cache.
        trust_remote_code: As in `bge_runtime.FlagModel`.
        show_progress_bar: Show a progress bar.
        model_kwargs: Other arguments of `bge_runtime.FlagAutoModel.from_finetuned`.
            ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and parity
            was measured.
    """

    normalize: bool = True

    def _embed(self, texts: list[str], *, queries: bool) -> list[list[float]]:
        options = self._encode_options(queries=queries)
        return as_lists(dense_vectors(self._model, texts, normalize=self.normalize, **options))


class BgeM3SparseEmbedding(_Bge, BaseSparseEmbedding):
    """BGE-M3's lexical weights for LlamaIndex, by token id.

    The attributes are those of `BgeEmbedding`, except for ``normalize``. The model must be an M3
    model.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Open the model.

        Raises:
            BundleError: If it is not an M3 model, and as `bge_runtime.FlagModel`.
        """
        super().model_post_init(context)
        check_m3(self._model)

    def _embed(self, texts: list[str], *, queries: bool) -> list[dict[int, float]]:
        return to_milvus_sparse(
            lexical_weights(check_m3(self._model), texts, **self._encode_options(queries=queries))
        )


class BgeReranker(BaseNodePostprocessor):
    """A reranker for LlamaIndex, in fp32 by default; it replaces ``SentenceTransformerRerank``.

    The asynchronous method computes in a thread.

    Attributes:
        model_name: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagReranker`.
        top_n: Nodes that are returned, best first.
        normalize: Give scores between 0 and 1, the sigmoid of the model's.
        max_length: Tokens that a query and a node together are cut to; None for all that the model
            reads.
        device: Where to compute; None for the CPU.
        cache_folder: Folder of the hub's cache.
        trust_remote_code: As in `bge_runtime.FlagModel`.
        model_kwargs: Other arguments of `bge_runtime.FlagAutoReranker.from_finetuned`.
            ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and parity
            was measured.
    """

    # LlamaIndex's own base classes ignore unknown arguments.
    model_config = ConfigDict(extra="forbid")

    model_name: str
    top_n: int = Field(default=2, ge=1)
    normalize: bool = True
    max_length: int | None = Field(default=None, ge=1)
    device: str | None = None
    cache_folder: str | None = None
    trust_remote_code: bool = False
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _model: AnyReranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the model.

        Raises:
            TypeError: If an argument is given twice, once in ``model_kwargs``.
            BgeError: As `bge_runtime.FlagReranker`.
        """
        super().model_post_init(context)
        self._model = open_reranker(
            self.model_name,
            normalize=self.normalize,
            max_length=self.max_length,
            device=self.device,
            cache_folder=self.cache_folder,
            trust_remote_code=self.trust_remote_code,
            model_kwargs=self.model_kwargs,
        )

    @property
    def model(self) -> AnyReranker:
        """The model. ``model.engine.info`` shows the engine in force."""
        return self._model

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores it."""
        return cls.__name__

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Return the best ``top_n`` nodes with their scores; the given nodes stay as they are."""
        if query_bundle is None:
            raise ValueError("BgeReranker needs the query: pass query_bundle or query_str")
        payload = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model_name,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
            ranked = self._model.rerank(query_bundle.query_str, texts, self.top_n)
            best = [NodeWithScore(node=nodes[each.index].node, score=each.score) for each in ranked]
            event.on_end(payload={EventPayload.NODES: best})
        return best
