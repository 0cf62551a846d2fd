"""Health, metrics, the OpenAPI document, and the page for people."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import time
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bge_runtime._version import __version__
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.health import Health
from bge_runtime.serving.http import Answer, Dialect, Gate
from bge_runtime.serving.models import ServedModel
from bge_runtime.serving.routes.numbers import write
from bge_runtime.serving.routes.spec import RouteSpec
from bge_runtime.sources import is_hub_id

_STARTED_S = time.monotonic()


class Ready(msgspec.Struct):
    """Answer of a probe."""

    status: str


def routes(
    models: Sequence[ServedModel], gate: Gate, health: Health, *, page: bool
) -> list[RouteSpec]:
    """Return the routes.

    Args:
        models: The models that they are about.
        gate: Options and metrics of the server.
        health: Tells whether the engines answer.
        page: Whether to serve the page.
    """
    probe = partial(
        RouteSpec,
        method="GET",
        answer=Ready,
        dialect=Dialect.TEI,
        is_open=True,
    )
    ready = partial(_ready, models, gate, health)
    found = [
        probe(path="/health", handler=ready, summary="Whether the engines answer."),
        probe(path="/.well-known/ready", handler=ready, summary="The same, for Weaviate."),
        probe(path="/.well-known/live", handler=_live, summary="Whether the process answers."),
        RouteSpec(
            path="/metrics",
            method="GET",
            handler=partial(_metrics, models, gate),
            summary="Metrics in Prometheus' format.",
            dialect=Dialect.TEI,
        ),
    ]
    if page:
        found += [
            RouteSpec(path="/ui", method="GET", handler=_page, summary="A page.", is_open=True),
            RouteSpec(
                path="/ui/stats",
                method="GET",
                handler=partial(_stats, models, gate),
                summary="What the page shows.",
                answer=dict[str, Any],
            ),
        ]
    return found


async def _ready(
    models: Sequence[ServedModel], gate: Gate, health: Health, _: Any, __: RequestContext
) -> Answer:
    if gate.draining:
        raise RequestError(Kind.UNAVAILABLE, "the server is stopping")
    for model in models:
        reason = await health.check(model)
        if reason is not None:
            raise RequestError(Kind.UNAVAILABLE, reason)
    return Answer(b'{"status":"ok"}')


async def _live(_: Any, __: RequestContext) -> Answer:
    return Answer(b'{"status":"ok"}')


async def _metrics(models: Sequence[ServedModel], gate: Gate, _: Any, __: RequestContext) -> Answer:
    gate.count_batches()
    metrics, scheduler = gate.metrics, models[0].scheduler
    for lane, bulk in (("query", False), ("bulk", True)):
        metrics.queued_tokens.labels(lane).set(scheduler.queued_tokens(bulk=bulk))
    metrics.running_batches.set(scheduler.running_batches)
    for model in models:
        metrics.healthy.labels(model.name).set(model.trouble is None)
    return Answer(generate_latest(metrics.registry), CONTENT_TYPE_LATEST)


async def _page(_: Any, __: RequestContext) -> Answer:
    page = resources.files("bge_runtime.serving").joinpath("ui.html").read_bytes()
    allowed = " ".join(
        f"{name}-src {' '.join(_hashes(page, tag))};"
        for name, tag in (("script", b"script"), ("style", b"style"))
    )
    policy = (
        f"default-src 'none'; {allowed} connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Answer(page, "text/html; charset=utf-8", headers=headers)


def _hashes(page: bytes, tag: bytes) -> list[str]:
    """Return the hashes of the page's own scripts or styles, the only ones that a browser runs."""
    blocks = re.findall(b"<%b[^>]*>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(block).digest()).decode() for block in blocks]
    return [f"'sha256-{digest}'" for digest in digests] or ["'none'"]


async def _stats(models: Sequence[ServedModel], gate: Gate, _: Any, __: RequestContext) -> Answer:
    gate.count_batches()
    return Answer(
        write(
            {
                "uptime_s": time.monotonic() - _STARTED_S,
                "version": __version__,
                "draining": gate.draining,
                "models": [_describe(model) for model in models],
            }
        )
    )


def _describe(model: ServedModel) -> dict[str, Any]:
    """Return what is served, what is in force, and how it goes."""
    info, card = model.opened.engine.info, model.card
    source = model.opened.bundle.manifest.provenance.source
    scheduler, trouble = model.scheduler, model.trouble
    return {
        "name": model.name,
        "kind": model.KIND,
        "base_path": model.base_path,
        "model": card.name,
        "source": source if is_hub_id(source) else None,  # a path is nobody's business
        "model_class": card.model_class,
        "dim": card.dim,
        "max_length": model.max_length,
        "outputs": model.outputs,
        "query_instruction": model.query_instruction,
        "engine": {
            "engine": info.engine,
            "version": info.version,
            "device": info.device,
            "provider": info.provider,
            "precision": info.precision,
            "variant": info.variant,
            "threads": info.threads,
            "slots": sum(found.slots for found in model.engines.devices.values()),
        },
        "parity": _parity(model, info.variant),
        "healthy": trouble is None,
        "trouble": trouble,
        "queue": {
            "tokens": scheduler.queued_tokens(bulk=False) + scheduler.queued_tokens(bulk=True),
            "requests": scheduler.queued_requests,
            "running_batches": scheduler.running_batches,
            "capacity_tokens": model.room_tokens,
        },
        **model.last_minute.report(),
    }


def _parity(model: ServedModel, variant: str) -> dict[str, float] | None:
    variants = {each.name: each for each in model.opened.bundle.manifest.variants}
    parity = variants[variant].parity
    return None if parity is None else dataclasses.asdict(parity)
