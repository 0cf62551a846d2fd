"""Texts, engines and checks that the tests of several integrations share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from bge_runtime.engines import Engine
from tests.helpers.runtime import WrappedEngine

SAME_VECTOR = 1e-5
"""Largest difference to another tool's fp32 vectors: the issue's and the parity gate's."""

LONG = [f"{number} heat pumps " + "and their sources of warmth " * 10 for number in range(1500)]
"""Texts that take the tiny models a second or so."""


class Meeting(WrappedEngine):
    """An engine that computes only once two callers have called it at the same time."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.barrier = threading.Barrier(2, timeout=30)

    def run(
        self, input_ids: Any, attention_mask: Any, outputs: Sequence[str], *, past: Any = None
    ) -> list[Any]:
        self.barrier.wait()
        return super().run(input_ids, attention_mask, outputs, past=past)


def require_two_callers(model: Any) -> None:
    """Replace a model's engines by ones that compute for two callers at once only."""
    engines = model._engines
    engines.opened = {device: Meeting(engine) for device, engine in engines.opened.items()}


def run_watched(*coroutines: Coroutine[Any, Any, Any]) -> tuple[list[Any], float, float]:
    """Run coroutines on one event loop, and measure its longest pause.

    Returns:
        Their results, the seconds they took, and the longest pause between two ticks of the
        loop.
    """

    async def watched() -> tuple[list[Any], float, float]:
        pauses: list[float] = []

        async def tick() -> None:
            last = time.perf_counter()
            while True:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                pauses.append(now - last)
                last = now

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)  # the clock starts
        start = time.perf_counter()
        results = await asyncio.gather(*coroutines)
        took = time.perf_counter() - start
        await asyncio.sleep(0.002)  # a pause up to the end counts as well
        ticking.cancel()
        return results, took, max(pauses)

    return asyncio.run(watched())


def assert_responsive(took: float, longest_pause: float) -> None:
    """Check that the loop kept running during the computation.

    A loop that computes in its own thread pauses for all of ``took``. On a busy machine any loop
    pauses for a while.
    """
    assert took > 0.4, "too short to tell"
    assert longest_pause < took / 4
