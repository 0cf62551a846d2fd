"""The call of Qdrant to an inference server (``QDRANT__INFERENCE__ADDRESS``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from bge_runtime.models import TextKind
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect
from bge_runtime.serving.models import Embedded, ModelSet, ServedEmbedder
from bge_runtime.serving.routes.fields import SparseVector, add_prompt, read_kind, read_outputs
from bge_runtime.serving.routes.numbers import as_float32, sparse_vectors, write, write_list
from bge_runtime.serving.routes.spec import RouteSpec

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


def routes(models: ModelSet) -> list[RouteSpec]:
    """Return the routes."""
    return [
        RouteSpec(
            path="/infer",
            method="POST",
            handler=partial(_infer, models),
            summary="Embed texts for Qdrant; each input may ask for another output of BGE-M3.",
            body=InferenceRequest,
            answer=InferenceAnswer,
            dialect=Dialect.QDRANT,
            kind=ServedEmbedder,
        )
    ]


class _Group(NamedTuple):
    """What texts have in common that are embedded together."""

    model: ServedEmbedder
    dimensions: int | None
    normalize: bool
    prompt_name: str | None


async def _infer(models: ModelSet, body: InferenceRequest, context: RequestContext) -> Answer:
    if not body.inputs:
        raise RequestError(Kind.EMPTY, "inputs is empty; send at least one")
    models.embedder(body.inputs[0].model).check_count(body.inputs)
    groups: dict[_Group, list[int]] = {}
    for index, each in enumerate(body.inputs):
        if each.data_type != "text":
            raise RequestError(
                Kind.INVALID,
                f"inputs[{index}] has data_type {each.data_type[:100]!r}, and this server embeds "
                "text",
            )
        model, options = models.embedder(each.model), _options(each)
        read_outputs(model, **_flags([options.output]))  # before any text is computed
        group = _Group(model, options.dimensions or None, options.normalize, options.prompt_name)
        groups.setdefault(group, []).append(index)
    found: list[Any] = [None] * len(body.inputs)
    usage: dict[str, dict[str, int]] = {}
    default: TextKind = None
    if body.inference is not None:
        default = "query" if body.inference == "search" else "passage"
    for group, rows in groups.items():  # nearly always one
        inputs = [body.inputs[row] for row in rows]
        embedded, vectors = await _embed(group, inputs, default, context)
        for row, vector in zip(rows, vectors, strict=True):
            found[row] = vector
        used = usage.setdefault(group.model.name, {"tokens": 0})
        used["tokens"] += embedded.tokens
    context.texts = len(body.inputs)
    context.tokens = sum(used["tokens"] for used in usage.values())
    numbers = sum(getattr(vector, "size", 256) for vector in found)
    written = await write_list(found, numbers=numbers)
    return Answer(b'{"embeddings":' + written + b',"usage":' + write({"models": usage}) + b"}")


async def _embed(
    group: _Group, inputs: list[InferenceInput], default: TextKind, context: RequestContext
) -> tuple[Embedded, list[Any]]:
    """Embed inputs, and return the vector of each. A text that asks for two outputs is run once."""
    kind, prompt = default, ""
    if group.prompt_name is not None:
        kind, prompt = read_kind(group.prompt_name, group.model, param="prompt_name")
    texts = list(dict.fromkeys(each.data for each in inputs))
    wanted = [_options(each).output for each in inputs]
    embedded = await group.model.embed(
        add_prompt(texts, prompt),
        context,
        kind=kind,
        outputs=read_outputs(group.model, **_flags(wanted)),
        normalize=group.normalize,
        dimensions=group.dimensions,
    )
    vectors: dict[Output, list[Any]] = {}
    if embedded.dense is not None:
        vectors["dense"] = list(as_float32(embedded.dense))
    if embedded.lexical is not None:
        vectors["sparse"] = list(sparse_vectors(embedded.lexical))
    if embedded.colbert is not None:
        vectors["colbert_vecs"] = [as_float32(rows) for rows in embedded.colbert]
    place = {text: index for index, text in enumerate(texts)}
    return embedded, [
        vectors[output][place[each.data]] for output, each in zip(wanted, inputs, strict=True)
    ]


def _options(each: InferenceInput) -> InferenceOptions:
    return each.options or InferenceOptions()


def _flags(outputs: Sequence[Output]) -> dict[str, bool]:
    return {
        "dense": "dense" in outputs,
        "sparse": "sparse" in outputs,
        "colbert": "colbert_vecs" in outputs,
    }
