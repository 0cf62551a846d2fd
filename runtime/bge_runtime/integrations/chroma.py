"""Chroma: embedding functions for dense vectors and for BGE-M3's lexical weights.

Chroma keeps an embedding function's name and configuration with the collection and makes it
anew when the collection is opened, by looking its name up among the classes that it has seen.
So import this module before you open a collection that was made with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.integrations import not_installed
from bge_runtime.integrations._models import check_m3, dense_vectors, lexical_weights, open_model
from bge_runtime.models import AnyFlagModel
from bge_runtime.stores import to_chroma_sparse
from bge_runtime.system import once

try:
    from chromadb import EmbeddingFunction, SparseVector
    from chromadb.api.types import Documents, SparseEmbeddingFunction
    from chromadb.utils.embedding_functions import (
        register_embedding_function,
        register_sparse_embedding_function,
    )
except ImportError as error:
    raise not_installed("chroma", error) from error


@once(maxsize=8)
def _opened(config: str) -> AnyFlagModel:
    """Open a model once: Chroma makes a new embedding function for many a call."""
    options = json.loads(config)
    return open_model(
        options["model_name"],
        query_instruction=options["query_instruction"],
        **options["model_kwargs"],
    )


class _Bge:
    """What both functions have: a configuration, and the model that it describes."""

    def __init__(
        self,
        model_name: str,
        *,
        query_instruction: str | None = None,
        max_length: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Take note of a model, which is opened when it is first used.

        Functions of one configuration share one opened model, as do a dense and a sparse one.

        Args:
            model_name: Bundle, or hub id or folder of a checkpoint; see
                `bge_runtime.FlagModel`. It is kept in the collection as it is given.
            query_instruction: Put before each query. None for the one that the model's
                authors recommend, ``""`` for none.
            max_length: Tokens a text is cut to; None for as many as the model's folder says.
            model_kwargs: ``device`` and what `bge_runtime.FlagAutoModel.from_finetuned`
                takes, as far as JSON can hold it. ``{"use_fp16": True}`` asks for more
                speed: 16 bit, where the processor computes in it and parity was measured.

        Raises:
            TypeError: If JSON cannot hold ``model_kwargs``.
        """
        self.max_length = max_length
        self._options = {
            "model_name": model_name,
            "query_instruction": query_instruction,
            "model_kwargs": dict(model_kwargs or {}),
        }
        self._key = json.dumps(self._options, sort_keys=True)

    @property
    def model(self) -> AnyFlagModel:
        """The model behind it; ``model.engine.info`` tells what is in force."""
        return _opened(self._key)

    def get_config(self) -> dict[str, Any]:
        """Give what the collection keeps: the constructor's arguments."""
        return {**self._options, "max_length": self.max_length}


@register_embedding_function
class BgeEmbeddingFunction(_Bge, EmbeddingFunction[Documents]):
    """Dense vectors for Chroma, in fp32 unless told otherwise."""

    def __init__(
        self, model_name: str, *, normalize_embeddings: bool = False, **options: Any
    ) -> None:
        """Take note of a model, which is opened when it is first used.

        Args:
            model_name: As in `BgeM3SparseEmbeddingFunction`.
            normalize_embeddings: Scale vectors to unit length where the model's folder does not;
                the folders of most models do.
            **options: As in `BgeM3SparseEmbeddingFunction`.

        Raises:
            TypeError: If JSON cannot hold ``model_kwargs``.
        """
        super().__init__(model_name, **options)
        self.normalize_embeddings = normalize_embeddings

    def __call__(self, input: Documents) -> list[NDArray[np.float32]]:  # noqa: A002  # Chroma's
        """Embed documents. Shape of each: ``(dim,)``."""
        return self._embed(input, queries=False)

    def embed_query(self, input: Documents) -> list[NDArray[np.float32]]:  # noqa: A002
        """Embed queries, behind the instruction. Shape of each: ``(dim,)``."""
        return self._embed(input, queries=True)

    def _embed(self, texts: Sequence[str], *, queries: bool) -> list[NDArray[np.float32]]:
        return list(
            dense_vectors(
                self.model,
                texts,
                queries=queries,
                normalize=self.normalize_embeddings,
                max_length=self.max_length,
            )
        )

    def get_config(self) -> dict[str, Any]:
        """Give what the collection keeps: the constructor's arguments."""
        return {**super().get_config(), "normalize_embeddings": self.normalize_embeddings}

    @staticmethod
    def name() -> str:
        """Give the name by which collections remember the class."""
        return "bge_runtime"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> BgeEmbeddingFunction:
        """Make it from what a collection remembers."""
        return BgeEmbeddingFunction(**config)

    def default_space(self) -> str:
        """Compare by cosine, unless the collection says otherwise."""
        return "cosine"


@register_sparse_embedding_function
class BgeM3SparseEmbeddingFunction(_Bge, SparseEmbeddingFunction[Documents]):
    """BGE-M3's lexical weights for Chroma, which indexes them in its cloud only, as of 1.5.9."""

    def __call__(self, input: Documents) -> list[SparseVector]:  # noqa: A002  # Chroma's
        """Weigh the tokens of documents."""
        return self._weigh(input, queries=False)

    def embed_query(self, input: Documents) -> list[SparseVector]:  # noqa: A002
        """Weigh the tokens of queries, behind the instruction, if one is set."""
        return self._weigh(input, queries=True)

    def _weigh(self, texts: Sequence[str], *, queries: bool) -> list[SparseVector]:
        model = check_m3(self.model)
        return to_chroma_sparse(
            lexical_weights(model, texts, queries=queries, max_length=self.max_length)
        )

    @staticmethod
    def name() -> str:
        """Give the name by which collections remember the class."""
        return "bge_runtime_m3_sparse"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> BgeM3SparseEmbeddingFunction:
        """Make it from what a collection remembers."""
        return BgeM3SparseEmbeddingFunction(**config)
