"""Chroma: embedding functions for dense vectors and for BGE-M3's lexical weights.

Chroma stores the name and configuration of an embedding function with the collection. When it
opens the collection, it looks the name up among the registered classes. So import this module
before you open a collection that uses it.
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
def _open_once(config: str) -> AnyFlagModel:
    """Open a model once, since Chroma often creates a new embedding function for a call."""
    options = json.loads(config)
    return open_model(
        options["model_name"],
        query_instruction=options["query_instruction"],
        **options["model_kwargs"],
    )


class _Bge:
    """What both functions share: a configuration, and the model that it describes."""

    def __init__(
        self,
        model_name: str,
        *,
        query_instruction: str | None = None,
        max_length: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Store the configuration. The model is opened on first use.

        Functions with the same configuration share one model, also a dense and a sparse one.

        Args:
            model_name: A bundle, or a checkpoint's folder or Hub ID; see
                `bge_runtime.FlagModel`. The collection stores it as given.
            query_instruction: Put before each query. None for the one that the model's
                authors recommend, ``""`` for none.
            max_length: Tokens that a text is cut to; None for the model folder's setting.
            model_kwargs: ``device`` and arguments of
                `bge_runtime.FlagAutoModel.from_finetuned` that JSON can hold.
                ``{"use_fp16": True}`` computes in 16 bits, if the processor supports it and
                parity was measured.

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
        """The model. ``model.engine.info`` shows the engine in force."""
        return _open_once(self._key)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, which the collection stores."""
        return {**self._options, "max_length": self.max_length}


@register_embedding_function
class BgeEmbeddingFunction(_Bge, EmbeddingFunction[Documents]):
    """Dense vectors for Chroma, in fp32 by default."""

    def __init__(
        self, model_name: str, *, normalize_embeddings: bool = False, **options: Any
    ) -> None:
        """Store the configuration. The model is opened on first use.

        Args:
            model_name: As in `BgeM3SparseEmbeddingFunction`.
            normalize_embeddings: Scale vectors to unit length even if the model folder's
                settings do not. Those of most models do.
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
        """Embed queries, after the instruction. Shape of each: ``(dim,)``."""
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
        """Return the constructor's arguments, which the collection stores."""
        return {**super().get_config(), "normalize_embeddings": self.normalize_embeddings}

    @staticmethod
    def name() -> str:
        """Return the name under which collections store the class."""
        return "bge_runtime"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> BgeEmbeddingFunction:
        """Create the function from a stored configuration."""
        return BgeEmbeddingFunction(**config)

    def default_space(self) -> str:
        """Return the default metric of collections."""
        return "cosine"


@register_sparse_embedding_function
class BgeM3SparseEmbeddingFunction(_Bge, SparseEmbeddingFunction[Documents]):
    """BGE-M3's lexical weights for Chroma. As of 1.5.9, only its cloud indexes them."""

    def __call__(self, input: Documents) -> list[SparseVector]:  # noqa: A002  # Chroma's
        """Return the lexical weights of documents."""
        return self._weigh(input, queries=False)

    def embed_query(self, input: Documents) -> list[SparseVector]:  # noqa: A002
        """Return the lexical weights of queries, after the instruction, if one is set."""
        return self._weigh(input, queries=True)

    def _weigh(self, texts: Sequence[str], *, queries: bool) -> list[SparseVector]:
        model = check_m3(self.model)
        return to_chroma_sparse(
            lexical_weights(model, texts, queries=queries, max_length=self.max_length)
        )

    @staticmethod
    def name() -> str:
        """Return the name under which collections store the class."""
        return "bge_runtime_m3_sparse"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> BgeM3SparseEmbeddingFunction:
        """Create the function from a stored configuration."""
        return BgeM3SparseEmbeddingFunction(**config)
