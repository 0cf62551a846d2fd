"""What the tests of several adapters need."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine

from tests.helpers.runtime import WrappedEngine

SAME_VECTOR = 1e-5
"""Largest difference to another tool's fp32 vectors: the issue's and the parity gate's."""

LONG = [f"{number} heat pumps " + "and their sources of warmth " * 10 for number in range(1500)]
"""Texts that take the tiny models a second or so."""


class Meeting(WrappedEngine):
    """An engine that computes once two callers are in it at the same time."""

    def __init__(self, inner):
        super().__init__(inner)
        self.barrier = threading.Barrier(2, timeout=30)

    def run(self, input_ids, attention_mask, outputs):
        self.barrier.wait()
        return super().run(input_ids, attention_mask, outputs)


def let_callers_meet(model):
    """Let a model's engine compute only for two callers at once."""
    model._engines = {device: Meeting(engine) for device, engine in model._engines.items()}


def run_watched(*coroutines: Coroutine):
    """Run coroutines on one event loop, and watch how it fares.

    Returns:
        Their results, the seconds they took, and the longest time for which the loop did not
        come round.
    """

    async def watched():
        pauses = []

        async def tick():
            last = time.perf_counter()
            while True:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                pauses.append(now - last)
                last = now

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)  # its clock runs
        start = time.perf_counter()
        results = await asyncio.gather(*coroutines)
        took = time.perf_counter() - start
        await asyncio.sleep(0.002)  # what held the loop up to the end is counted as well
        ticking.cancel()
        return results, took, max(pauses)

    return asyncio.run(watched())


def assert_responsive(took: float, longest_pause: float) -> None:
    """Check that the loop came round while others computed.

    A loop that computes itself pauses for all of ``took``. On a busy machine one that does
    not still waits for its turn.
    """
    assert took > 0.4, "too short to tell"
    assert longest_pause < took / 4
