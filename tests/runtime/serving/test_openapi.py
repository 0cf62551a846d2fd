"""The OpenAPI document: which errors a route answers, and what they look like."""

from __future__ import annotations

from bge_runtime.serving.http import Dialect
from bge_runtime.serving.openapi import describe
from bge_runtime.serving.routes import RouteSpec


async def handle(*_):
    raise AssertionError


def responses(dialect, *, body=dict[str, int], path="/route", is_open=False):
    method = "GET" if body is None else "POST"
    spec = RouteSpec(
        path=path, method=method, handler=handle, summary="A route.", body=body,
        dialect=dialect, is_open=is_open,
    )  # fmt: skip
    document = describe([("", spec)])
    (operation,) = document["paths"][path].values()
    found = operation["responses"]
    del found["200"]
    schemas = {
        each["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for each in found.values()
    }
    assert schemas <= set(document["components"]["schemas"])
    return set(map(int, found)), schemas


def test_each_dialect_has_its_own_errors():
    common = {400, 401, 408, 413, 424, 429, 503, 504}
    assert responses(Dialect.OPENAI) == (common | {404, 500}, {"OpenAIError"})
    assert responses(Dialect.TEI) == (common | {404, 422}, {"TEIError"})
    assert responses(Dialect.COHERE) == (common | {404, 500}, {"CohereError"})
    assert responses(Dialect.PLAIN) == (common | {404, 500}, {"PlainError"})
    assert responses(Dialect.QDRANT) == (common - {424} | {500}, {"PlainError"})


def test_routes_without_a_body_have_few():
    assert responses(Dialect.TEI, body=None)[0] == {401, 422, 503}
    assert responses(Dialect.TEI, body=None, is_open=True)[0] == {422, 503}
    assert responses(Dialect.OPENAI, body=None, path="/models/{id}")[0] == {400, 401, 404, 503}
