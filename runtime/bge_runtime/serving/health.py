"""Whether the engines of a model answer."""

from __future__ import annotations

import asyncio
import contextlib
import time

from bge_runtime.serving.context import ClientLeftError, RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.models import ServedModel

_LATELY_S = 10.0
"""A batch that succeeded within this time proves that an engine answers."""

_PROBE_TIMEOUT_S = 5.0
"""Seconds for a text of the probe's own; Kubernetes and Weaviate wait for less."""


class Health:
    """Tells whether engines answer, by computing a text if none has been lately."""

    def __init__(self) -> None:
        """Start without probes."""
        self._probes: dict[str, asyncio.Task[str | None]] = {}

    async def check(self, model: ServedModel) -> str | None:
        """Return what is wrong with a model; None if its engines answer."""
        trouble = model.trouble
        idle_s = time.monotonic() - model.engines.answered_s
        # A long text on a small machine takes minutes; when its batch has stalled is trouble.
        if trouble is None and (idle_s < _LATELY_S or model.scheduler.computes(model.engines)):
            return None
        # One probe at a time, however many ask.
        probe = self._probes.get(model.name)
        if probe is None or probe.done():
            probe = self._probes[model.name] = asyncio.create_task(self._probe(model))
        return await asyncio.shield(probe)

    async def _probe(self, model: ServedModel) -> str | None:
        never = asyncio.Event()

        async def receive() -> dict[str, str]:
            await never.wait()
            return {"type": "http.disconnect"}

        context = RequestContext("health", "/health", receive, timeout_s=_PROBE_TIMEOUT_S)
        try:
            with contextlib.suppress(ClientLeftError):
                await model.probe(context)
        except RequestError as error:
            if error.kind is Kind.OVERLOADED:  # it has more work than it can do, and does it
                return None
            return f"{model.name} does not answer: {error}"
        return None
