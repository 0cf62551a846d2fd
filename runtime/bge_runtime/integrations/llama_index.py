"""LlamaIndex: ``BgeEmbedding`` for dense vectors, ``BgeM3SparseEmbedding`` for lexical weights."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from bge_runtime.auto_model import AnyFlagModel
from bge_runtime.integrations import not_installed
from bge_runtime.integrations._models import (
    as_lists,
    check_m3,
    dense_vectors,
    lexical_weights,
    open_model,
)
from bge_runtime.stores import to_milvus_sparse

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
    from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise not_installed("llama-index", error) from error


class _Bge(BaseModel):
    """What both classes have: a model, and LlamaIndex's methods on top of one."""

    # LlamaIndex's own base classes drop what they do not know.
    model_config = ConfigDict(extra="forbid")

    model_name: str
    # LlamaIndex's 10 would fill no batch.
    embed_batch_size: int = Field(default=256, gt=0, le=2048)
    query_instruction: str | None = None
    max_length: int | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)

    _model: AnyFlagModel = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the model; raises what `bge_runtime.FlagModel` does."""
        super().model_post_init(context)
        self._model = open_model(
            self.model_name, query_instruction=self.query_instruction, **self.model_kwargs
        )

    @property
    def model(self) -> AnyFlagModel:
        """The model behind it; ``model.engine.info`` tells what is in force."""
        return self._model

    @classmethod
    def class_name(cls) -> str:
        """Give the name that LlamaIndex keeps of it."""
        return cls.__name__

    @abstractmethod
    def _embed(self, texts: list[str], *, queries: bool) -> list[Any]:
        """Give what LlamaIndex wants for each text."""

    def _get_query_embedding(self, query: str) -> Any:
        return self._embed([query], queries=True)[0]

    def _get_text_embedding(self, text: str) -> Any:
        return self._embed([text], queries=False)[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Any]:
        return self._embed(texts, queries=False)

    async def _aget_query_embedding(self, query: str) -> Any:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> Any:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Any]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class BgeEmbedding(_Bge, BaseEmbedding):
    """Dense vectors for LlamaIndex, of unit length, in fp32 unless told otherwise.

    The asynchronous methods compute in a thread.

    Attributes:
        model_name: Bundle, or hub id or folder of a checkpoint; see `bge_runtime.FlagModel`.
        embed_batch_size: Texts that are handed over together; batches are made of them by
            their tokens.
        query_instruction: Put before each query. None for the one that the model's authors
            recommend, ``""`` for none.
        max_length: Tokens a text is cut to; None for all that the model can read.
        model_kwargs: ``device`` and what `bge_runtime.FlagAutoModel.from_finetuned` takes.
            ``{"use_fp16": True}`` asks for more speed: 16 bit, where the processor computes
            in it and parity was measured.
    """

    def _embed(self, texts: list[str], *, queries: bool) -> list[list[float]]:
        return as_lists(
            dense_vectors(self._model, texts, queries=queries, max_length=self.max_length)
        )


class BgeM3SparseEmbedding(_Bge, BaseSparseEmbedding):
    """BGE-M3's lexical weights for LlamaIndex, by token id.

    The attributes are those of `BgeEmbedding`; the model must be of M3's class.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Open the model.

        Raises:
            BundleError: If it weighs no tokens, and as `bge_runtime.FlagModel`.
        """
        super().model_post_init(context)
        check_m3(self._model)

    def _embed(self, texts: list[str], *, queries: bool) -> list[dict[int, float]]:
        return to_milvus_sparse(
            lexical_weights(
                check_m3(self._model), texts, queries=queries, max_length=self.max_length
            )
        )
