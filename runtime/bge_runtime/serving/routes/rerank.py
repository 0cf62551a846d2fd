"""``/rerank``, as TEI, Cohere, Weaviate and Elasticsearch have it.

Their clients send to the same path. What they send tells them apart (`_form_of`), and decides about
the answer and the form of an error:

=============  ==================================  ==============================================
TEI            ``texts``                           ``[{index, score, text?}]``, best first
Weaviate       ``property``, which may be empty    ``{query, scores: [{document, score}]}``
Cohere         ``documents`` and ``model``         ``{id, model, results, usage, meta}``
Elasticsearch  ``documents`` alone, at             ``[{index, relevance_score, document?}]``; it
               ``/rerank``                         refuses an answer with any other field
=============  ==================================  ==============================================

Jina, vLLM, infinity, SiliconFlow, Xinference and LocalAI have Cohere's form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec

from bge_runtime.rerankers import sigmoid
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect
from bge_runtime.serving.models import ModelSet, ServedReranker
from bge_runtime.serving.routes.fields import read_truncation
from bge_runtime.serving.routes.numbers import write, write_list
from bge_runtime.serving.routes.spec import RouteSpec

_CHARACTERS = 8
"""Characters of a text that are written in the time of a number."""

Document = str | dict[str, Any]
"""A text, or an object that has it as ``text`` or in the fields that ``rank_fields`` names."""


class RerankRequest(msgspec.Struct):
    """Body of ``/rerank``: ``texts`` are TEI's, ``documents`` are the others'."""

    query: str
    documents: list[Document] | None = None
    texts: list[Document] | None = None
    property: str | msgspec.UnsetType | None = msgspec.UNSET
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: int | None = None
    truncate: bool | str | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None


class TEIRank(msgspec.Struct):
    """The score of a text, in TEI's answer."""

    index: int
    score: float
    text: str | msgspec.UnsetType = msgspec.UNSET


class RankedDocument(msgspec.Struct):
    """The score of a document, in the answers for Cohere and Elasticsearch."""

    index: int
    relevance_score: float
    document: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class RerankUsage(msgspec.Struct):
    """Tokens of all pairs, after truncation."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(msgspec.Struct):
    """Answer for Cohere's clients; ``meta`` has the version of the API and the tokens."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: RerankUsage
    meta: dict[str, Any]


class DocumentScore(msgspec.Struct):
    """The score of a document, in Weaviate's answer."""

    document: str
    score: float


class WeaviateScores(msgspec.Struct):
    """Answer for Weaviate: scores in the order of the documents, or the score of the property."""

    query: str
    scores: list[DocumentScore] | None
    property: str | None
    score: float | None


class _Found(NamedTuple):
    """What an answer is made of.

    Attributes:
        body: The request's body.
        documents: Its documents.
        texts: Their texts.
        scores: The score of each, as the request asks for it.
        order: Positions of those to return, the best one first.
        tokens: Tokens of all pairs.
        model: Name of the model.
        request_id: Id of the request.
    """

    body: RerankRequest
    documents: Sequence[Document]
    texts: Sequence[str]
    scores: Sequence[float]
    order: Sequence[int]
    tokens: int
    model: str
    request_id: str


class _Form(NamedTuple):
    """What the clients of one server expect.

    Attributes:
        dialect: Form of errors.
        write: Writes the answer.
    """

    dialect: Dialect
    write: Callable[[_Found], Awaitable[bytes]]


async def _write_for_tei(found: _Found) -> bytes:
    with_text = bool(found.body.return_text or found.body.return_documents)
    ranks = [
        {"index": row, "score": found.scores[row]}
        | ({"text": found.texts[row]} if with_text else {})
        for row in found.order
    ]
    return await _write_list(ranks, found.texts if with_text else ())


async def _write_for_elasticsearch(found: _Found) -> bytes:
    with_text = bool(found.body.return_documents or found.body.return_text)
    results = []
    for row in found.order:
        result: dict[str, Any] = {"index": row, "relevance_score": found.scores[row]}
        if with_text:
            document = found.documents[row]
            result["document"] = document if isinstance(document, dict) else {"text": document}
        results.append(result)
    return await _write_list(results, found.texts if with_text else ())


async def _write_for_cohere(found: _Found) -> bytes:
    head = write({"id": found.request_id, "model": found.model})
    results = await _write_for_elasticsearch(found)
    tail = write(
        {
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
            "meta": {
                "api_version": {"version": "2"},
                "tokens": {"input_tokens": found.tokens, "output_tokens": 0},
            },
        }
    )
    return head[:-1] + b',"results":' + results + b"," + tail[1:]


async def _write_for_weaviate(found: _Found) -> bytes:
    query = write(found.body.query)
    if found.body.documents is None:
        rest = write({"scores": None, "property": found.texts[0], "score": found.scores[0]})
        return b'{"query":' + query + b"," + rest[1:]
    pairs = zip(found.texts, found.scores, strict=True)
    scores = [{"document": text, "score": score} for text, score in pairs]
    written = await _write_list(scores, found.texts)
    return b'{"query":' + query + b',"scores":' + written + b',"property":null,"score":null}'


async def _write_list(items: Sequence[Any], texts: Sequence[str]) -> bytes:
    return await write_list(items, numbers=len(items) + sum(map(len, texts)) // _CHARACTERS)


_TEI = _Form(Dialect.TEI, _write_for_tei)
_COHERE = _Form(Dialect.COHERE, _write_for_cohere)
_WEAVIATE = _Form(Dialect.PLAIN, _write_for_weaviate)
_ELASTICSEARCH = _Form(Dialect.TEI, _write_for_elasticsearch)  # it takes the server for TEI


def routes(models: ModelSet) -> list[RouteSpec]:
    """Return the routes."""
    route = partial(
        RouteSpec,
        method="POST",
        summary="Score passages for a query, as TEI, Cohere, Weaviate and Elasticsearch have it.",
        body=RerankRequest,
        answer=(list[TEIRank], list[RankedDocument], RerankAnswer, WeaviateScores),
        kind=ServedReranker,
    )
    plain = partial(
        route,
        handler=partial(_rerank, models, _ELASTICSEARCH),
        dialect=Dialect.TEI,
        other_dialects=(Dialect.COHERE, Dialect.PLAIN),
    )
    versioned = partial(
        route,
        handler=partial(_rerank, models, _COHERE),
        dialect=Dialect.COHERE,
        other_dialects=(Dialect.TEI, Dialect.PLAIN),
    )
    found = [plain(path="/rerank"), versioned(path="/v1/rerank"), versioned(path="/v2/rerank")]
    if len(models.of_kind(ServedReranker)) == len(models.models) == 1:
        found.append(plain(path="/"))  # TEI's alias for what its model does
    return found


async def _rerank(
    models: ModelSet, unnamed: _Form, body: RerankRequest, context: RequestContext
) -> Answer:
    """Answer a request; ``unnamed`` is the form of one that names no model."""
    form = _form_of(body, unnamed)
    context.dialect = form.dialect
    model = models.reranker(body.model)
    documents = _documents_of(body)
    model.check_count(documents)
    texts = [_text_of(document, row, body) for row, document in enumerate(documents)]
    for name, value in (("top_n", body.top_n), ("max_tokens_per_doc", body.max_tokens_per_doc)):
        if value is not None and value < 0:
            raise RequestError(Kind.INVALID, f"{name} is {value}; send 1 or more", param=name)
    truncate, keep_end = read_truncation(body.truncate, param="truncate")
    ranked = await model.rank(
        body.query,
        texts,
        context,
        passage_tokens=body.max_tokens_per_doc or None,
        truncate=truncate,
        keep_end=keep_end or (body.truncation_direction or "right").lower() == "left",
    )
    found = _Found(
        body,
        documents,
        texts,
        (ranked.scores if body.raw_scores else sigmoid(ranked.scores)).tolist(),
        ranked.order[: body.top_n or None].tolist(),  # 0 is all of them, as vLLM has it
        ranked.tokens,
        model.name,
        context.request_id,
    )
    return Answer(await form.write(found))


def _form_of(body: RerankRequest, unnamed: _Form) -> _Form:
    """Return what the client that has sent a body expects."""
    if body.texts is not None:
        return _TEI
    if body.property is not msgspec.UNSET:
        return _WEAVIATE
    return unnamed if body.model is None else _COHERE


def _documents_of(body: RerankRequest) -> Sequence[Document]:
    if body.documents is not None and body.texts is not None:
        raise RequestError(
            Kind.INVALID, "documents and texts say the same; send one of them", param="texts"
        )
    for found in (body.documents, body.texts):
        if found is not None:
            return found
    if isinstance(body.property, str):  # Weaviate's form for one document
        return [body.property]
    raise RequestError(Kind.INVALID, "there is nothing to score; send documents", param="documents")


def _text_of(document: Document, row: int, body: RerankRequest) -> str:
    """Return the text of a document.

    Raises:
        RequestError: If it has none of the fields, or one that is no text.
    """
    if isinstance(document, str):
        return document
    fields = body.rank_fields or ["text"]
    values = [document[name] for name in fields if name in document]
    if not values or not all(isinstance(value, str) for value in values):
        known = ", ".join(map(repr, fields))
        raise RequestError(
            Kind.INVALID,
            f"document {row} is an object without a text in {known[:200]}. Send strings, objects "
            "with a text, or rank_fields with the names of fields that hold one",
            param="documents",
        )
    return "\n".join(values)
