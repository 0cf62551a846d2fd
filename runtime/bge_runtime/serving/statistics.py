"""What a model has served in the last minute, second by second."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

_SECONDS = 60

_STEP = math.log(1.01)
"""Latencies are counted in steps of 1 %: a second takes the same memory however many requests it
has, and a report the same time."""


@dataclass
class _Second:
    number: int
    texts: int = 0
    tokens: int = 0
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    queued_tokens: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    p95_ms: float | None = None


class LastMinute:
    """Counts of the last 60 seconds. Any thread may use it."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._seconds: deque[_Second] = deque(maxlen=_SECONDS + 1)
        self._lock = threading.Lock()

    def add_request(self, *, latency_ms: float, status: int) -> None:
        """Count a request that was answered."""
        with self._lock:
            second = self._now()
            second.requests += 1
            second.rejected += status == 429
            second.errors += status >= 500
            if status < 300:
                second.latencies[_step_of(latency_ms)] += 1
                second.p95_ms = None

    def add_batch(self, *, texts: int, tokens: int, queued_tokens: int) -> None:
        """Count a batch that was computed; ``queued_tokens`` is what waits behind it."""
        with self._lock:
            second = self._now()
            second.texts += texts
            second.tokens += tokens
            second.queued_tokens = max(second.queued_tokens, queued_tokens)

    def report(self) -> dict[str, Any]:
        """Return sums, percentiles, and values for each second, oldest first."""
        now = int(time.monotonic())
        with self._lock:
            known = {second.number: second for second in self._seconds}
            kept = [known.get(now - ago) or _Second(0) for ago in range(_SECONDS, 0, -1)]
            latencies: Counter[int] = Counter()
            for second in kept:
                latencies.update(second.latencies)
                if second.p95_ms is None and second.latencies:
                    (second.p95_ms,) = percentiles(second.latencies, 95)
            shares = (50, 95, 99)
            sums = {
                name: sum(getattr(second, name) for second in kept)
                for name in ("requests", "texts", "tokens", "errors", "rejected")
            }
            # Since the first of them: a second without a batch has had its share of the work.
            first = next((at for at, each in enumerate(kept) if each.requests or each.tokens), 0)
            seconds = len(kept) - first
            return {
                "last_minute": {
                    **sums,
                    "texts_per_s": sums["texts"] / seconds,
                    "tokens_per_s": sums["tokens"] / seconds,
                    **{
                        f"p{share}_ms": found
                        for share, found in zip(
                            shares, percentiles(latencies, *shares), strict=True
                        )
                    },
                },
                "per_second": {
                    "texts": [second.texts for second in kept],
                    "p95_ms": [second.p95_ms for second in kept],
                    "queued_tokens": [second.queued_tokens for second in kept],
                },
            }

    def _now(self) -> _Second:
        number = int(time.monotonic())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        return self._seconds[-1]


def _step_of(latency_ms: float) -> int:
    return math.floor(math.log(max(latency_ms, 0.001)) / _STEP)


def percentiles(latencies: Counter[int], *shares: float) -> list[float | None]:
    """Return percentiles of latencies in milliseconds, within half a step of 1 %.

    Args:
        latencies: How many there are in each step.
        *shares: Which percentiles, in percent. Each is None if there are no latencies.
    """
    steps = sorted(latencies)
    passed = list(accumulate(latencies[step] for step in steps))
    if not steps:
        return [None] * len(shares)
    places = (bisect_right(passed, passed[-1] * share / 100) for share in shares)
    return [math.exp((steps[min(place, len(steps) - 1)] + 0.5) * _STEP) for place in places]
