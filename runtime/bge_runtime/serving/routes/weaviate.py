"""The routes of Weaviate's inference containers (text2vec-transformers)."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer
from bge_runtime.serving.models import ModelSet, ServedEmbedder
from bge_runtime.serving.routes.fields import add_prompt, read_kind
from bge_runtime.serving.routes.numbers import as_float32, write, write_list
from bge_runtime.serving.routes.spec import RouteSpec


class VectorConfig(msgspec.Struct):
    """How to embed a text."""

    task_type: str | None = None
    dimensions: int | None = None
    pooling_strategy: str | None = None


class VectorRequest(msgspec.Struct):
    """Body of ``/vectors``: one text or several; 0 dimensions are all of them."""

    text: str | None = None
    texts: list[str] | None = None
    config: VectorConfig | None = None


class VectorAnswer(msgspec.Struct):
    """Answer of ``/vectors``: ``text``, ``vector`` and ``dim`` for one text, else ``vectors``."""

    dims: int
    text: str | msgspec.UnsetType = msgspec.UNSET
    vector: list[float] | msgspec.UnsetType = msgspec.UNSET
    dim: int | msgspec.UnsetType = msgspec.UNSET
    vectors: list[list[float]] | msgspec.UnsetType = msgspec.UNSET


class Meta(msgspec.Struct):
    """Answer of ``/meta``."""

    model: str
    model_class: str
    dim: int
    max_length: int
    pooling: str


def routes(models: ModelSet) -> list[RouteSpec]:
    """Return the routes of the only one of ``models``."""
    return [
        RouteSpec(
            path="/vectors",
            method="POST",
            handler=partial(_embed, models),
            summary="Embed texts, as Weaviate's inference containers do.",
            body=VectorRequest,
            answer=VectorAnswer,
            kind=ServedEmbedder,
        ),
        RouteSpec(
            path="/meta",
            method="GET",
            handler=partial(_meta, models),
            summary="Describe the model to Weaviate.",
            answer=Meta,
            is_open=True,
        ),
    ]


async def _embed(models: ModelSet, body: VectorRequest, context: RequestContext) -> Answer:
    model = models.embedder(None)
    config = body.config or VectorConfig()
    if (body.text is None) == (body.texts is None):
        raise RequestError(Kind.INVALID, "send either text or texts", param="text")
    texts = body.texts if body.texts is not None else [str(body.text)]
    model.check_count(texts)
    kind, prompt = read_kind(config.task_type, model, param="task_type")
    embedded = await model.embed(
        add_prompt(texts, prompt), context, kind=kind, dimensions=config.dimensions or None
    )
    assert embedded.dense is not None
    vectors = as_float32(embedded.dense)
    dims = vectors.shape[1]
    if body.texts is not None:
        written = await write_list(vectors, numbers=vectors.size)
        return Answer(b'{"vectors":' + written + b',"dims":%d}' % dims)
    return Answer(write({"text": body.text, "vector": vectors[0], "dim": dims, "dims": dims}))


async def _meta(models: ModelSet, _: Any, context: RequestContext) -> Answer:  # noqa: ARG001
    model = models.resolve(None)
    card = model.card
    return Answer(
        write(
            {
                "model": card.name,
                "model_class": card.model_class,
                "dim": card.dim,
                "max_length": model.max_length,
                "pooling": card.pooling,
            }
        )
    )
