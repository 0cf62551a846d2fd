"""The routes of text-embeddings-inference (TEI)."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import starmap
from typing import Any, Literal

import msgspec

from bge_runtime._version import __version__
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect
from bge_runtime.serving.models import Embedded, ModelSet, ServedEmbedder, ServedReranker
from bge_runtime.serving.options import ServeOptions
from bge_runtime.serving.routes.fields import (
    InputField,
    add_prompt,
    read_inputs,
    read_kind,
    read_outputs,
)
from bge_runtime.serving.routes.numbers import as_float32, sparse_rows, write, write_list
from bge_runtime.serving.routes.spec import RouteSpec

_MAX_CHARACTERS = 1 << 18
"""Maximum characters of the texts that ``/tokenize`` takes. Other than the routes that embed, it
tokenizes all of a text, and answers with a hundred times the memory of its characters."""


class EmbedRequest(msgspec.Struct):
    """Body of ``/embed``, ``/embed_sparse`` and ``/embed_all``."""

    inputs: InputField
    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None


class TokenizeRequest(msgspec.Struct):
    """Body of ``/tokenize``."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(msgspec.Struct):
    """Body of ``/decode``."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True


class SparseValue(msgspec.Struct):
    """The weight of one token."""

    index: int
    value: float


class Token(msgspec.Struct):
    """A token of a text; start and stop are positions of characters."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class EmbeddingType(msgspec.Struct):
    """How a model pools."""

    pooling: str


class RerankerType(msgspec.Struct):
    """The labels of a sequence classifier."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(msgspec.Struct):
    """What a model is: its only key."""

    embedding: EmbeddingType | msgspec.UnsetType = msgspec.UNSET
    reranker: RerankerType | msgspec.UnsetType = msgspec.UNSET


class Info(msgspec.Struct):
    """Answer of ``/info``."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    engine: str
    outputs: list[str]
    dimensions: int | msgspec.UnsetType = msgspec.UNSET


def routes(models: ModelSet, options: ServeOptions) -> list[RouteSpec]:
    """Return the routes of the only one of ``models``."""
    tei = partial(RouteSpec, dialect=Dialect.TEI)
    post = partial(tei, method="POST")
    embed = partial(post, body=EmbedRequest, kind=ServedEmbedder)
    paths = ("/embed",) if models.of_kind(ServedReranker) else ("/embed", "/")
    return [
        *(
            embed(
                path=path,
                handler=partial(_embed, models),
                summary="Embed texts, as TEI does.",
                answer=list[list[float]],
            )
            for path in paths
        ),
        embed(
            path="/embed_sparse",
            handler=partial(_embed_sparse, models),
            summary="Return the lexical weights of texts (BGE-M3).",
            answer=list[list[SparseValue]],
        ),
        embed(
            path="/embed_all",
            handler=partial(_embed_all, models),
            summary="Return the ColBERT vectors of texts, one for each token but [CLS] (BGE-M3).",
            answer=list[list[list[float]]],
        ),
        post(
            path="/tokenize",
            handler=partial(_tokenize, models),
            summary="Return the tokens of texts.",
            body=TokenizeRequest,
            answer=list[list[Token]],
        ),
        post(
            path="/decode",
            handler=partial(_decode, models),
            summary="Return the texts of token ids.",
            body=DecodeRequest,
            answer=list[str],
        ),
        tei(
            path="/info",
            method="GET",
            handler=partial(_info, models, options),
            summary="Return what is served, and its limits.",
            answer=Info,
        ),
    ]


async def _compute(
    model: ServedEmbedder, body: EmbedRequest, context: RequestContext, outputs: tuple[str, ...]
) -> Embedded:
    kind, prompt = read_kind(body.prompt_name, model, param="prompt_name")
    inputs = read_inputs(body.inputs, model, token_ids=True, param="inputs")
    return await model.embed(
        add_prompt(inputs, prompt),
        context,
        kind=kind,
        outputs=outputs,
        normalize=body.normalize is not False,
        dimensions=body.dimensions or None,
        truncate=body.truncate is not False,
        keep_end=(body.truncation_direction or "right").lower() == "left",
    )


async def _embed(models: ModelSet, body: EmbedRequest, context: RequestContext) -> Answer:
    model = models.embedder(None)
    outputs = read_outputs(model, dense=True, sparse=False, colbert=False)
    dense = (await _compute(model, body, context, outputs)).dense
    assert dense is not None
    return Answer(await write_list(as_float32(dense), numbers=dense.size))


async def _embed_sparse(models: ModelSet, body: EmbedRequest, context: RequestContext) -> Answer:
    model = models.embedder(None)
    outputs = read_outputs(model, dense=False, sparse=True, colbert=False)
    lexical = (await _compute(model, body, context, outputs)).lexical
    assert lexical is not None
    rows = [
        [
            {"index": index, "value": value}
            for index, value in zip(ids.tolist(), weights, strict=True)
        ]
        for ids, weights in sparse_rows(lexical)
    ]
    return Answer(await write_list(rows, numbers=4 * len(lexical.weights)))


async def _embed_all(models: ModelSet, body: EmbedRequest, context: RequestContext) -> Answer:
    model = models.embedder(None)
    outputs = read_outputs(model, dense=False, sparse=False, colbert=True)
    colbert = (await _compute(model, body, context, outputs)).colbert
    assert colbert is not None
    rows = [as_float32(vectors) for vectors in colbert]
    return Answer(await write_list(rows, numbers=sum(row.size for row in rows)))


async def _tokenize(models: ModelSet, body: TokenizeRequest, context: RequestContext) -> Answer:
    model = models.resolve(None)
    _, prompt = read_kind(body.prompt_name, model, param="prompt_name")
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    model.check_count(texts)
    context.model, context.texts = model.name, len(texts)
    characters = sum(map(len, texts))
    if characters > _MAX_CHARACTERS:
        raise RequestError(
            Kind.TOO_LARGE,
            f"the texts have {characters:,} characters, and {_MAX_CHARACTERS:,} is the limit of "
            "/tokenize. Send them in parts",
        )
    tokenizer = model.tokenizer.tokenizer

    def tokens_of(text: str) -> bytes:
        context.check()
        encoding = tokenizer.encode(text, add_special_tokens=body.add_special_tokens)
        parts = zip(
            encoding.ids,
            encoding.tokens,
            encoding.special_tokens_mask,
            encoding.offsets,
            strict=True,
        )
        return write(list(starmap(partial(_token, text), parts)))

    def all_tokens() -> bytes:
        return b"[" + b",".join([tokens_of(prompt + text) for text in texts]) + b"]"

    try:
        return Answer(await context.run(model.threads[True], all_tokens))
    except (TypeError, ValueError) as error:
        raise RequestError(Kind.INVALID, str(error), param="inputs") from error


def _token(
    text: str, number: int, name: str, special: int, offsets: tuple[int, int]
) -> dict[str, Any]:
    start, stop = offsets
    return {
        "id": number,
        "text": name if special else text[start:stop],
        "special": bool(special),
        "start": None if special else start,
        "stop": None if special else stop,
    }


async def _decode(models: ModelSet, body: DecodeRequest, context: RequestContext) -> Answer:
    model = models.resolve(None)
    single = all(isinstance(each, int) for each in body.ids)
    rows: list[Any] = [body.ids] if single else body.ids
    model.check_count(rows)
    context.model, context.texts = model.name, len(rows)
    if not all(isinstance(row, list) for row in rows):
        raise RequestError(Kind.INVALID, "ids mixes numbers and lists", param="ids")
    model.check_tokens(sum(map(len, rows)))
    if any(not 0 <= each < model.card.vocab_size for row in rows for each in row):
        raise RequestError(
            Kind.INVALID, f"ids of {model.name} are 0 to {model.card.vocab_size - 1}", param="ids"
        )
    texts = await asyncio.to_thread(
        model.tokenizer.tokenizer.decode_batch,
        rows,
        skip_special_tokens=body.skip_special_tokens,
    )
    return Answer(write(list(texts)))


async def _info(
    models: ModelSet,
    options: ServeOptions,
    _: Any,
    context: RequestContext,  # noqa: ARG001
) -> Answer:
    model = models.resolve(None)
    info = model.opened.engine.info
    # Dify reads the first key.
    kind: dict[str, Any] = {"embedding": {"pooling": model.card.pooling}}
    dimensions = {"dimensions": model.card.dim}
    if isinstance(model, ServedReranker):
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        kind, dimensions = {"reranker": labels}, {}
    return Answer(
        write(
            {
                "model_id": model.name,
                "model_sha": None,
                "model_dtype": info.precision,
                "model_type": kind,
                "max_concurrent_requests": None,
                "max_input_length": model.max_length,
                "max_batch_tokens": options.max_request_tokens,
                "max_batch_requests": None,
                "max_client_batch_size": options.max_inputs,
                "auto_truncate": True,
                "tokenization_workers": 2,
                "version": __version__,
                "sha": None,
                "docker_label": None,
                "engine": str(info),
                "outputs": model.outputs,
                **dimensions,
            }
        )
    )
