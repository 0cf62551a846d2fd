"""Spans of requests, with OpenTelemetry's own exporter to memory."""

from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.testclient import TestClient

from bge_runtime.serving import ServeOptions
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect, Endpoint, Gate
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.tracing import start_tracing


class Body(msgspec.Struct):
    kind: str | None = None


async def answer(body, context):
    context.model, context.texts, context.tokens, context.tokenize_s = "tiny", 2, 9, 0.01
    if body.kind is not None:
        raise RequestError(Kind[body.kind], "what is wrong")
    return Answer(b"{}")


@pytest.fixture
def spans(monkeypatch):
    """A function that sends a request to a route, and returns the spans that it makes."""
    kept = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda endpoint: kept)
    gate = Gate(ServeOptions(), Metrics())
    gate.trace, finish = start_tracing("http://localhost:4318")

    def send(route, **request):
        endpoint = Endpoint(gate, route, answer, body=Body, dialect=Dialect.TEI)
        TestClient(endpoint).post(route, **{"json": {}} | request)
        finish()
        return kept.get_finished_spans()

    return send


def test_a_request_is_a_span_in_the_trace_of_its_caller(spans):
    caller = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{caller}-b7ad6b7169203331-01", "x-request-id": "mine"}
    stage, span = spans("/docs/embed", headers=headers)
    assert (stage.name, span.name) == ("tokenize", "POST /docs/embed")
    assert stage.parent.span_id == span.context.span_id
    assert f"{span.context.trace_id:032x}" == caller
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/docs/embed",
        "http.response.status_code": 200,
        "bge.request_id": "mine",
        "bge.model": "tiny",
        "bge.texts": 2,
        "bge.tokens": 9,
        "bge.truncated": 0,
    }


@pytest.mark.parametrize(
    ("kind", "http", "status"),
    [
        ("INVALID", 422, StatusCode.UNSET),
        ("BACKEND", 424, StatusCode.ERROR),  # which TEI does not call the server's
        ("UNAVAILABLE", 503, StatusCode.ERROR),
    ],
)
def test_what_the_server_fails_is_an_error_of_its_span(spans, kind, http, status):
    *_, span = spans("/embed", json={"kind": kind})
    assert span.attributes["http.response.status_code"] == http
    assert span.attributes["error.type"] == Kind[kind].code
    assert span.status.status_code is status


@pytest.mark.parametrize("route", ["/health", "/docs/health", "/.well-known/live", "/metrics"])
def test_probes_are_no_spans(spans, route):
    assert spans(route) == ()
