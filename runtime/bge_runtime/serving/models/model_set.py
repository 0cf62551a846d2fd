"""The models of a server, by the names that requests use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.models.base import ServedModel
from bge_runtime.serving.models.embedder import ServedEmbedder
from bge_runtime.serving.models.reranker import ServedReranker

Model = TypeVar("Model", bound=ServedModel)

_CANNOT = {
    ServedEmbedder: "{} is a reranker, which scores passages for a query: POST /rerank. Vectors "
    "come from an embedder, such as BAAI/bge-m3",
    ServedReranker: "{} is an embedder, which returns vectors: POST /v1/embeddings. Passages are "
    "scored by a reranker, such as BAAI/bge-reranker-v2-m3",
}
"""What to say of a model that is not of such a kind."""


class ModelSet:
    """All models of a server, or one of them.

    Attributes:
        models: The models, in the order in which they were given.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """Index the models by name."""
        self.models = list(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in self.models:
            source = model.opened.bundle.manifest.provenance.source
            for name in (source, source.rpartition("/")[2], model.card.name):
                self._by_name.setdefault(name.lower(), model)
        # Names that were given come before those of bundles.
        self._by_name |= {model.name.lower(): model for model in self.models}

    def of_kind(self, kind: type[Model]) -> list[Model]:
        """Return the models of a kind."""
        return [model for model in self.models if isinstance(model, kind)]

    def resolve(self, name: str | None) -> ServedModel:
        """Return the model that a request names; no name is enough where there is one model.

        Args:
            name: The name under which it is served, its bundle's or its checkpoint's, in any case;
                Ollama's ``:latest`` may follow.

        Raises:
            RequestError: If there is no such model.
        """
        return self._resolve(name, ServedModel)

    def embedder(self, name: str | None) -> ServedEmbedder:
        """Return the embedder that a request names; no name is enough where there is one embedder.

        Raises:
            RequestError: If there is no such model, or it is none.
        """
        return self._resolve(name, ServedEmbedder)

    def reranker(self, name: str | None) -> ServedReranker:
        """Return the reranker that a request names; no name is enough where there is one reranker.

        Raises:
            RequestError: If there is no such model, or it is none.
        """
        return self._resolve(name, ServedReranker)

    def _resolve(self, name: str | None, kind: type[Model]) -> Model:
        model = self._named(name) if name else self._only(kind)
        if not isinstance(model, kind):
            raise RequestError(Kind.WRONG_MODEL, _CANNOT[kind].format(model.name), param="model")
        return model

    def _only(self, kind: type[Model]) -> ServedModel:
        """Return the only model of a kind; without any of the kind, the only model."""
        fitting = self.of_kind(kind) or self.models
        if len(fitting) == 1:
            return fitting[0]
        names = ", ".join(model.name for model in fitting)
        raise RequestError(
            Kind.INVALID, f"no model is named; this server has {names}", param="model"
        )

    def _named(self, name: str) -> ServedModel:
        model = self._by_name.get(name.lower().removesuffix(":latest"))
        if model is None:
            served = ", ".join(model.name for model in self.models)
            raise RequestError(
                Kind.NOT_FOUND,
                f"the model {name[:200]!r} is not served here; this server has {served}. To serve "
                "a model under another name: bge-serve MODEL=NAME",
                param="model",
            )
        return model
