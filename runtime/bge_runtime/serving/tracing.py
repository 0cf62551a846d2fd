"""Traces for OpenTelemetry: a span for each request, with one for each of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from bge_runtime._version import __version__
from bge_runtime.errors import BgeError
from bge_runtime.serving.context import RequestContext

Trace = Callable[[Mapping[str, Any], str, RequestContext], AbstractContextManager[object]]
"""Returns a context for a request's ASGI scope, route and state."""

_PROBES = ("/health", "/.well-known/ready", "/.well-known/live", "/metrics")
"""Ends of routes that are asked every few seconds, and are no part of anybody's trace."""


def start_tracing(endpoint: str) -> tuple[Trace, Callable[[], object]]:
    """Return what traces a request, and what sends the last spans at the end.

    Args:
        endpoint: URL that receives OTLP over HTTP, such as ``http://localhost:4318``.

    Raises:
        BgeError: If OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        raise BgeError(
            f"traces need OpenTelemetry, which is not installed ({error}). "
            "Run `pip install 'bge-runtime[otel]'`"
        ) from error
    resource = Resource.create({"service.name": "bge-serve", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    url = endpoint.rstrip("/")
    if not url.endswith("/v1/traces"):
        url += "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    tracer, propagator = provider.get_tracer("bge-serve"), TraceContextTextMapPropagator()

    @contextmanager
    def trace(scope: Mapping[str, Any], route: str, context: RequestContext) -> Iterator[None]:
        if route.endswith(_PROBES):
            yield
            return
        carrier = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        started_ns = time.time_ns()
        with tracer.start_as_current_span(
            f"{scope['method']} {route}",
            context=propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=started_ns,
        ) as span:
            yield
            span.set_attribute("http.response.status_code", context.status)
            if context.error is not None:
                span.set_attribute("error.type", context.error.code)
                if context.error.status >= 500:
                    span.set_status(StatusCode.ERROR)
            span.set_attributes(
                {
                    "http.request.method": scope["method"],
                    "http.route": route,
                    "bge.request_id": context.request_id,
                    "bge.model": context.model,
                    "bge.texts": context.texts,
                    "bge.tokens": context.tokens,
                    "bge.truncated": context.truncated,
                }
            )
            # The stages follow each other, and are known when the last one is over.
            at_ns = started_ns
            for name, seconds in (
                ("tokenize", context.tokenize_s),
                ("queue", context.queue_s),
                ("inference", context.compute_s),
            ):
                if seconds:
                    stage = tracer.start_span(name, start_time=at_ns)
                    at_ns += int(1e9 * seconds)
                    stage.end(at_ns)

    return trace, provider.shutdown
