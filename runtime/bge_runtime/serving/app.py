"""The ASGI application: models, scheduler and routes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import Route

from bge_runtime._version import __version__
from bge_runtime.models import AnyFlagModel
from bge_runtime.rerankers import AnyReranker, BaseReranker
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.health import Health
from bge_runtime.serving.http import Answer, Dialect, Endpoint, Gate, dialect_of_path
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.models import ModelSet, ServedEmbedder, ServedModel, ServedReranker
from bge_runtime.serving.openapi import describe
from bge_runtime.serving.options import MAX_LENGTH, ServeOptions
from bge_runtime.serving.routes import (
    RouteSpec,
    ollama,
    openai,
    pages,
    qdrant,
    rerank,
    tei,
    weaviate,
)
from bge_runtime.serving.scheduling import EngineGroup, Scheduler, SchedulerOptions
from bge_runtime.serving.tracing import start_tracing

logger = logging.getLogger("bge_runtime.serving")

_WATCH_S = 1.0
"""Seconds between two looks for batches that have stalled."""


_TAKEN = ("v1", "v2", "rerank", "api", "ui")
"""Beginnings of the paths at the root, where a model's own path would be in doubt."""

_ANOTHER_NAME = "Give it another one, on the shell with bge-serve MODEL=NAME"


def create_app(
    models: AnyFlagModel | AnyReranker | Mapping[str, AnyFlagModel | AnyReranker],
    options: ServeOptions | None = None,
    *,
    max_length: int | None = None,
) -> Starlette:
    """Return an ASGI application that serves models.

    It may be mounted in another application, whose lifespan has to run that of this one. Its
    engines are used by the process that runs it, and by no other.

    Args:
        models: A model, whose routes are at the root; or models by name. Of several, each has its
            routes below its name, and the root has those that name a model.
        options: How to serve; None for the defaults.
        max_length: Tokens at which texts, or pairs of them, are cut. None for what each model can
            read, and 8,192 at most.

    Raises:
        BgeError: If an engine cannot be opened.
        ValueError: If there is no model, or a name cannot be part of a path.
    """
    options = options or ServeOptions()
    named = dict(models) if isinstance(models, Mapping) else {models.name: models}
    _check_names(list(named))
    metrics, several = Metrics(), len(named) > 1
    gate = Gate(options, metrics)
    served = [
        _serve(
            name,
            model,
            options,
            metrics,
            base_path=f"/{name}" if several else "",
            max_length=max_length or MAX_LENGTH,
        )
        for name, model in named.items()
    ]
    routes = _routes(served, gate, options)
    document = json.dumps(describe(_documented(routes, served))).encode()
    routes.append(("", _document_route(document)))
    endpoints: dict[tuple[str, str], Endpoint] = {}
    for base, spec in routes:
        path = base + spec.path
        endpoint = endpoints[spec.method, path] = Endpoint(
            gate,
            path,
            spec.handler,
            body=spec.body,
            dialect=spec.dialect,
            is_open=spec.is_open,
            # What only tells of the server counts for no model.
            model="" if spec.body is None else base[1:] if several else served[0].name,
        )
        # Clients that are given the URL of a model send to /docs as well as to /docs/, Weaviate's
        # to /vectors/ as well as to /vectors.
        other = path.rstrip("/") if path.endswith("/") else path + "/"
        if other and "{" not in path:
            endpoints.setdefault((spec.method, other), endpoint)
    app = _Application(
        # What CORS adds is in Starlette's middleware.
        {} if options.cors_origins else endpoints,
        routes=[
            Route(path, endpoint, methods=[method])
            for (method, path), endpoint in endpoints.items()
        ],
        middleware=_middleware(options),
        exception_handlers={HTTPException: partial(_no_route, gate)},
        lifespan=partial(_lifespan, served, gate),
    )
    # A redirect would be to the name in the request's Host, and change a POST for some clients.
    app.router.redirect_slashes = False
    app.state.gate, app.state.models = gate, served
    return app


def _serve(
    name: str, model: AnyFlagModel | AnyReranker, *arguments: Any, **options: Any
) -> ServedModel:
    if isinstance(model, BaseReranker):
        return ServedReranker(name, model, *arguments, **options)
    return ServedEmbedder(name, model, *arguments, **options)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("there is no model to serve; pass one at least")
    for name in names:
        if not name:
            raise ValueError(f"a model cannot be served without a name. {_ANOTHER_NAME}")
        # Of several models, each has its routes below its name.
        if len(names) > 1 and (set(name) & set("/?#%{} ") or name in _TAKEN):
            raise ValueError(
                f"a model cannot be served as {name!r}, which is part of its path. {_ANOTHER_NAME}"
            )


class _Application(Starlette):
    """Starlette, where a request whose path is known goes to its endpoint at once.

    Its middleware and router take a tenth of what a request costs apart from its batches.
    """

    def __init__(self, endpoints: Mapping[tuple[str, str], Endpoint], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._endpoints = {key: each for key, each in endpoints.items() if "{" not in key[1]}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        endpoint = None
        # Where it is mounted, the path is that of the other application, too.
        if scope["type"] == "http" and not scope.get("root_path"):
            endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            await super().__call__(scope, receive, send)
        else:
            await endpoint(scope, receive, send)


@contextlib.asynccontextmanager
async def _lifespan(served: Sequence[ServedModel], gate: Gate, _: Starlette) -> AsyncIterator[None]:
    options = gate.options
    by_engines = {model.engines: model for model in served}
    # Counting a batch takes as long as a query may wait for its answer: it is done later.
    batches: deque[tuple[EngineGroup, int, int, float]] = deque()

    def count_batches() -> None:
        queued = sum(scheduler.queued_tokens(bulk=bulk) for bulk in (False, True))
        while batches:
            engines, texts, tokens, seconds = batches.popleft()
            model, metrics = by_engines[engines], gate.metrics
            metrics.batch_seconds.labels(model.name).observe(seconds)
            metrics.batch_tokens.labels(model.name).observe(tokens)
            metrics.batch_texts.labels(model.name).observe(texts)
            metrics.texts.labels(model.name).inc(texts)
            metrics.tokens.labels(model.name).inc(tokens)
            model.last_minute.add_batch(texts=texts, tokens=tokens, queued_tokens=queued)

    gate.count_batches = count_batches
    scheduler = Scheduler(
        [model.engines for model in served],
        SchedulerOptions(slice_s=options.slice_s, stalled_s=options.engine_timeout_s),
        on_batch=lambda *batch: batches.append(batch),
    )
    by_name = {model.name: model for model in served}

    def note_answer(name: str, seconds: float, status: int) -> None:
        by_name[name].last_minute.add_request(latency_ms=1000 * seconds, status=status)

    gate.on_answer = note_answer
    async with contextlib.AsyncExitStack() as stack:
        if options.otlp_endpoint is not None:
            gate.trace, send_last = start_tracing(options.otlp_endpoint)
            stack.push_async_callback(asyncio.to_thread, send_last)
        for model in served:
            await asyncio.to_thread(model.start, scheduler)
            stack.callback(model.close)
        stack.push_async_callback(asyncio.to_thread, scheduler.close)
        watch = asyncio.create_task(_watch(scheduler, count_batches))
        stack.callback(watch.cancel)
        yield


async def _watch(scheduler: Scheduler, count_batches: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(_WATCH_S)
        try:
            scheduler.fail_stalled()
            count_batches()
        except Exception:  # a task that ended would look no more
            logger.exception("looking for stalled batches failed")


def _routes(
    served: Sequence[ServedModel], gate: Gate, options: ServeOptions
) -> list[tuple[str, RouteSpec]]:
    """Return all routes, with the base path of each."""
    health = Health()
    found: list[tuple[str, RouteSpec]] = []
    for model in served:
        alone = ModelSet([model])
        found += [
            (model.base_path, spec)
            for spec in [
                *_named_routes(alone, options),
                *tei.routes(alone, options),
                *weaviate.routes(alone),
                *pages.routes([model], gate, health, page=options.page),
            ]
        ]
    if len(served) > 1:
        found += [
            ("", spec)
            for spec in [
                *_named_routes(ModelSet(served), options),
                *pages.routes(served, gate, health, page=options.page),
            ]
        ]
    found.append(("", _root_route(served)))
    return found


def _documented(
    routes: Sequence[tuple[str, RouteSpec]], served: Sequence[ServedModel]
) -> list[tuple[str, RouteSpec]]:
    """Return the routes of which a model at their base path can do what they are for."""
    models = {"": served} | {model.base_path: [model] for model in served}
    return [
        (base, spec)
        for base, spec in routes
        if any(isinstance(model, spec.kind) for model in models[base])
    ]


def _named_routes(models: ModelSet, options: ServeOptions) -> list[RouteSpec]:
    """Return the routes whose requests name a model."""
    return [
        *openai.routes(models, token_ids=options.allow_token_ids),
        *rerank.routes(models),
        *ollama.routes(models),
        *qdrant.routes(models),
    ]


def _root_route(served: Sequence[ServedModel]) -> RouteSpec:
    entry = {
        "server": "bge-serve",
        "version": __version__,
        "models": {model.name: model.base_path or "/" for model in served},
        "documentation": "/openapi.json",
        "page": "/ui",
    }
    content = json.dumps(entry).encode()

    async def root(_: Any, __: RequestContext) -> Answer:
        return Answer(content)

    return RouteSpec(
        path="/",
        method="GET",
        handler=root,
        summary="What is served, and where.",
        dialect=Dialect.TEI,
        is_open=True,
    )


def _document_route(document: bytes) -> RouteSpec:
    async def openapi(_: Any, __: RequestContext) -> Answer:
        return Answer(document)

    return RouteSpec(
        path="/openapi.json", method="GET", handler=openapi, summary="This document.", is_open=True
    )


async def _no_route(gate: Gate, request: Request, error: HTTPException) -> Endpoint:
    """Return what answers a request for which there is no route."""
    path = str(request.scope["path"])  # request.url is made of the Host, which may be anything
    if error.status_code == 405:
        found = RequestError(
            Kind.METHOD,
            f"{path[:200]} does not answer {request.method[:20]} requests",
            headers=error.headers,
        )
    else:
        found = RequestError(
            Kind.NOT_FOUND, f"there is no {path[:200]} here; /openapi.json lists all routes"
        )

    async def refuse(_: Any, __: RequestContext) -> Answer:
        raise found

    return Endpoint(gate, "unknown", refuse, dialect=dialect_of_path(path), is_open=True)


def _middleware(options: ServeOptions) -> list[Middleware]:
    if not options.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=[
                "authorization",
                "x-api-key",
                "content-type",
                "x-request-id",
                "x-request-timeout-ms",
            ],
            expose_headers=[
                "x-request-id",
                "x-truncated-inputs",
                "x-queue-time",
                "x-inference-time",
                "x-total-time",
                "retry-after",
            ],
        )
    ]
