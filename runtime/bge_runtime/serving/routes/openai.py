"""OpenAI's routes, with M3's further outputs for those who ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect
from bge_runtime.serving.models import Embedded, ModelSet, ServedEmbedder
from bge_runtime.serving.routes.fields import (
    InputField,
    SparseVector,
    add_prompt,
    read_inputs,
    read_kind,
    read_outputs,
    read_truncation,
)
from bge_runtime.serving.routes.numbers import (
    as_base64,
    as_float32,
    sparse_vectors,
    write,
    write_list,
)
from bge_runtime.serving.routes.spec import RouteSpec

_STARTED = int(time.time())


class EmbeddingsRequest(msgspec.Struct):
    """Body of ``/v1/embeddings``."""

    input: InputField
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0)] | None = None
    user: str | None = None
    input_type: str | None = None
    prompt_name: str | None = None
    embed_dtype: Literal["float32", "float16"] | None = None
    normalize: bool | None = None
    truncate: bool | str | None = None
    return_dense: bool | None = None
    return_sparse: bool | None = None
    return_colbert_vecs: bool | None = None


class EmbeddingItem(msgspec.Struct, omit_defaults=True):
    """The vectors of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str | msgspec.UnsetType = msgspec.UNSET
    sparse_embedding: SparseVector | msgspec.UnsetType = msgspec.UNSET
    colbert_vecs: list[list[float]] | str | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    """Tokens of a request, after truncation."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct):
    """Answer of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage


class ModelItem(msgspec.Struct):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(msgspec.Struct):
    """Answer of ``/v1/models``."""

    object: Literal["list"]
    data: list[ModelItem]


def routes(models: ModelSet, *, token_ids: bool) -> list[RouteSpec]:
    """Return the routes.

    Args:
        models: The models that requests name.
        token_ids: Accept token ids in place of texts.
    """
    embed = partial(_embed, models, token_ids)
    return [
        RouteSpec(
            path=path,
            method="POST",
            handler=embed,
            summary="Embed texts, as OpenAI's API does.",
            body=EmbeddingsRequest,
            answer=EmbeddingsAnswer,
            dialect=Dialect.OPENAI,
            kind=ServedEmbedder,
        )
        for path in ("/v1/embeddings", "/embeddings")
    ] + [
        RouteSpec(
            path="/v1/models",
            method="GET",
            handler=partial(_list_models, models),
            summary="List the models.",
            answer=ModelsAnswer,
            dialect=Dialect.OPENAI,
        ),
        RouteSpec(
            path="/v1/models/{id:path}",
            method="GET",
            handler=partial(_one_model, models),
            summary="Return one model.",
            answer=ModelItem,
            dialect=Dialect.OPENAI,
        ),
    ]


async def _embed(
    models: ModelSet, token_ids: bool, body: EmbeddingsRequest, context: RequestContext
) -> Answer:
    model = models.embedder(body.model)
    if body.input_type is not None and body.prompt_name is not None:
        raise RequestError(
            Kind.INVALID, "input_type and prompt_name say the same; send one", param="prompt_name"
        )
    param = "input_type" if body.prompt_name is None else "prompt_name"
    kind, prompt = read_kind(body.input_type or body.prompt_name, model, param=param)
    inputs = read_inputs(body.input, model, token_ids=token_ids, param="input")
    outputs = read_outputs(
        model,
        dense=body.return_dense is not False,
        sparse=bool(body.return_sparse),
        colbert=bool(body.return_colbert_vecs),
    )
    truncate, keep_end = read_truncation(body.truncate, param="truncate")
    embedded = await model.embed(
        add_prompt(inputs, prompt),
        context,
        kind=kind,
        outputs=outputs,
        normalize=body.normalize is not False,
        dimensions=body.dimensions or None,
        truncate=truncate,
        keep_end=keep_end,
    )
    form = _form(body.encoding_format, body.embed_dtype or "float32")
    items, numbers = _items(embedded, form)
    data = await write_list(items, numbers=numbers)
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return Answer(
        b'{"object":"list","data":'
        + data
        + b',"model":'
        + write(model.name)
        + b',"usage":'
        + write(usage)
        + b"}"
    )


def _form(encoding: str | None, dtype: str) -> Callable[[NDArray[Any]], Any]:
    """Return a function that writes a vector as a request asks for it."""
    if encoding == "base64":
        return as_base64(dtype)
    if dtype == "float16":
        return lambda array: array.astype(np.float16)  # orjson writes them as float32
    return as_float32


def _items(embedded: Embedded, form: Callable[[Any], Any]) -> tuple[list[dict[str, Any]], int]:
    """Return the items of an answer, and about how many numbers they hold."""
    numbers, columns = 0, []
    if embedded.dense is not None:
        columns.append([("embedding", form(row)) for row in embedded.dense])
        numbers += embedded.dense.size
    if embedded.lexical is not None:
        columns.append([("sparse_embedding", each) for each in sparse_vectors(embedded.lexical)])
        numbers += 2 * len(embedded.lexical.weights)
    if embedded.colbert is not None:
        columns.append([("colbert_vecs", form(vectors)) for vectors in embedded.colbert])
        numbers += sum(vectors.size for vectors in embedded.colbert)
    items = [
        {"object": "embedding", "index": index, **dict(row)}
        for index, row in enumerate(zip(*columns, strict=True))
    ]
    return items, numbers


def _item(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "bge-runtime"}


async def _list_models(models: ModelSet, _: Any, context: RequestContext) -> Answer:  # noqa: ARG001
    data = [_item(model.name) for model in models.models]
    return Answer(write({"object": "list", "data": data}))


async def _one_model(
    models: ModelSet,
    parameters: dict[str, str],
    context: RequestContext,  # noqa: ARG001
) -> Answer:
    return Answer(write(_item(models.resolve(parameters["id"]).name)))
