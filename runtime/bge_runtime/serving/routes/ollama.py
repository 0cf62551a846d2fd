"""Ollama's routes for embeddings."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import msgspec

from bge_runtime._version import __version__
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.http import Answer
from bge_runtime.serving.models import Embedded, ModelSet, ServedEmbedder
from bge_runtime.serving.routes.numbers import as_float32, write, write_list
from bge_runtime.serving.routes.spec import RouteSpec


class OllamaRequest(msgspec.Struct):
    """Body of ``/api/embed``; ``keep_alive`` and ``options`` have no effect."""

    input: str | list[str]
    model: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None


class OllamaPromptRequest(msgspec.Struct):
    """Body of ``/api/embeddings``, Ollama's older route."""

    prompt: str
    model: str | None = None
    keep_alive: str | float | None = None
    options: dict[str, Any] | None = None


class OllamaAnswer(msgspec.Struct):
    """Answer of ``/api/embed``; durations are nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaPromptAnswer(msgspec.Struct):
    """Answer of ``/api/embeddings``."""

    embedding: list[float]


class Tag(msgspec.Struct):
    """A model that is served."""

    name: str
    model: str


class Tags(msgspec.Struct):
    """Answer of ``/api/tags``."""

    models: list[Tag]


class Version(msgspec.Struct):
    """Answer of ``/api/version``."""

    version: str


def routes(models: ModelSet) -> list[RouteSpec]:
    """Return the routes."""
    return [
        RouteSpec(
            path="/api/embed",
            method="POST",
            handler=partial(_embed, models),
            summary="Embed texts, as Ollama does.",
            body=OllamaRequest,
            answer=OllamaAnswer,
            kind=ServedEmbedder,
        ),
        RouteSpec(
            path="/api/embeddings",
            method="POST",
            handler=partial(_embed_prompt, models),
            summary="Embed one text, as Ollama's older route does.",
            body=OllamaPromptRequest,
            answer=OllamaPromptAnswer,
            kind=ServedEmbedder,
        ),
        RouteSpec(
            path="/api/tags",
            method="GET",
            handler=partial(_tags, models),
            summary="List the embedders, as Ollama does.",
            answer=Tags,
            kind=ServedEmbedder,
        ),
        RouteSpec(
            path="/api/version",
            method="GET",
            handler=_version,
            summary="Return the server's version.",
            answer=Version,
            kind=ServedEmbedder,
        ),
    ]


async def _embed(models: ModelSet, body: OllamaRequest, context: RequestContext) -> Answer:
    model = models.embedder(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    embedded: Embedded | None = None
    vectors = b"[]"
    if texts:  # Ollama answers no texts with no vectors
        embedded = await model.embed(
            texts,
            context,
            dimensions=body.dimensions or None,
            truncate=body.truncate is not False,
        )
        assert embedded.dense is not None
        dense = as_float32(embedded.dense)
        vectors = await write_list(dense, numbers=dense.size)
    rest = {
        "total_duration": int(1e9 * (time.monotonic() - context.started_s)),
        "load_duration": 0,
        "prompt_eval_count": embedded.tokens if embedded else 0,
    }
    named = write(body.model or model.name)
    return Answer(b'{"model":' + named + b',"embeddings":' + vectors + b"," + write(rest)[1:])


async def _embed_prompt(
    models: ModelSet, body: OllamaPromptRequest, context: RequestContext
) -> Answer:
    embedded = await models.embedder(body.model).embed([body.prompt], context)
    assert embedded.dense is not None
    return Answer(write({"embedding": as_float32(embedded.dense[0])}))


async def _tags(models: ModelSet, _: Any, context: RequestContext) -> Answer:  # noqa: ARG001
    tags = [{"name": model.name, "model": model.name} for model in models.of_kind(ServedEmbedder)]
    return Answer(write({"models": tags}))


async def _version(_: Any, context: RequestContext) -> Answer:  # noqa: ARG001
    return Answer(write({"version": __version__}))
