"""The models of a server, by the names that requests use."""

from __future__ import annotations

from collections.abc import Sequence

from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.model import ServedModel


class ModelSet:
    """All models of a server.

    Attributes:
        models: The models, in the order in which they were given.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """Index the models by name."""
        self.models = list(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in self.models:
            source = model.model.bundle.manifest.provenance.source
            for name in (source, source.rpartition("/")[2], model.card.name):
                self._by_name.setdefault(name.lower(), model)
        # Names that were given come before those of bundles.
        self._by_name |= {model.name.lower(): model for model in self.models}

    def resolve(self, name: str | None) -> ServedModel:
        """Return the model that a request names; no name is enough where there is one model.

        Args:
            name: The name under which it is served, its bundle's or its checkpoint's, in any case;
                Ollama's ``:latest`` may follow.

        Raises:
            RequestError: If there is no such model.
        """
        if not name and len(self.models) == 1:
            return self.models[0]
        served = ", ".join(model.name for model in self.models)
        if not name:
            raise RequestError(
                Kind.INVALID, f"no model is named; this server has {served}", param="model"
            )
        model = self._by_name.get(name.lower().removesuffix(":latest"))
        if model is None:
            raise RequestError(
                Kind.NOT_FOUND,
                f"the model {name[:200]!r} is not served here; this server has {served}. To serve "
                "a model under another name: bge-serve MODEL=NAME",
                param="model",
            )
        return model
