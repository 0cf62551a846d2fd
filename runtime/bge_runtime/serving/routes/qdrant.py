"""The call of Qdrant to an inference server (``QDRANT__INFERENCE__ADDRESS``)."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Literal

import msgspec

from bge_runtime.models import TextKind
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect
from bge_runtime.serving.model import Embedded, ServedModel
from bge_runtime.serving.routes.fields import SparseVector, add_prompt, read_kind, read_outputs
from bge_runtime.serving.routes.numbers import as_float32, sparse_rows, write, write_list
from bge_runtime.serving.routes.spec import Resolve, RouteSpec

Output = Literal["dense", "sparse", "colbert_vecs"]


class InferenceOptions(msgspec.Struct, frozen=True):
    """Options of an input: which output to return, and how."""

    output: Output = "dense"
    dimensions: int | None = None
    normalize: bool = True
    prompt_name: str | None = None


class InferenceInput(msgspec.Struct):
    """A text to embed."""

    data: str
    data_type: str = "text"
    model: str | None = None
    options: InferenceOptions | None = None


class InferenceRequest(msgspec.Struct):
    """Body of the call."""

    inputs: list[InferenceInput]
    inference: Literal["update", "search"] | None = None
    token: str | None = None


class InferenceAnswer(msgspec.Struct):
    """The vector of each input: dense, sparse, or one for each token."""

    embeddings: list[list[float | list[float]] | SparseVector]
    usage: dict[str, Any] | None = None


def routes(resolve: Resolve) -> list[RouteSpec]:
    """Return the routes."""
    return [
        RouteSpec(
            path="/infer",
            method="POST",
            handler=partial(_infer, resolve),
            summary="Embed texts for Qdrant; each input may ask for another output of BGE-M3.",
            body=InferenceRequest,
            answer=InferenceAnswer,
            dialect=Dialect.QDRANT,
        )
    ]


async def _infer(resolve: Resolve, body: InferenceRequest, context: RequestContext) -> Answer:
    groups: dict[tuple[ServedModel, InferenceOptions], list[int]] = {}
    for index, each in enumerate(body.inputs):
        if each.data_type != "text":
            raise RequestError(
                Kind.INVALID,
                f"inputs[{index}] has data_type {each.data_type[:100]!r}, and this server embeds "
                "text",
            )
        key = resolve(each.model), each.options or InferenceOptions()
        groups.setdefault(key, []).append(index)
    if not groups:
        raise RequestError(Kind.EMPTY, "inputs is empty; send at least one")
    default: TextKind = {"search": "query", "update": "passage"}.get(body.inference or "")  # type: ignore[assignment]
    found: list[Any] = [None] * len(body.inputs)
    usage: dict[str, dict[str, int]] = {}
    numbers = 0

    async def compute(model: ServedModel, options: InferenceOptions, rows: list[int]) -> None:
        nonlocal numbers
        kind, prompt = default, ""
        if options.prompt_name is not None:
            kind, prompt = read_kind(options.prompt_name, model, param="prompt_name")
        embedded = await model.embed(
            add_prompt([body.inputs[row].data for row in rows], prompt),
            context,
            kind=kind,
            outputs=read_outputs(
                model,
                dense=options.output == "dense",
                sparse=options.output == "sparse",
                colbert=options.output == "colbert_vecs",
            ),
            normalize=options.normalize,
            dimensions=options.dimensions or None,
        )
        for row, vector in zip(rows, _vectors(embedded), strict=True):
            found[row] = vector
            numbers += vector.size if hasattr(vector, "size") else len(vector["values"])
        used = usage.setdefault(model.name, {"tokens": 0})
        used["tokens"] += embedded.tokens

    async with asyncio.TaskGroup() as tasks:
        for (model, options), rows in groups.items():
            tasks.create_task(compute(model, options, rows))
    context.texts = len(body.inputs)
    context.tokens = sum(used["tokens"] for used in usage.values())
    vectors = await write_list(found, numbers=numbers)
    return Answer(b'{"embeddings":' + vectors + b',"usage":' + write({"models": usage}) + b"}")


def _vectors(embedded: Embedded) -> list[Any]:
    if embedded.dense is not None:
        return list(as_float32(embedded.dense))
    if embedded.lexical is not None:
        return [
            {"indices": ids, "values": weights} for ids, weights in sparse_rows(embedded.lexical)
        ]
    assert embedded.colbert is not None
    return [as_float32(vectors) for vectors in embedded.colbert]
