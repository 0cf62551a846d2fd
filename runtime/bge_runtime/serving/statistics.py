"""What a model has served in the last minute, second by second."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

_SECONDS = 60


@dataclass
class _Second:
    number: int
    texts: int = 0
    tokens: int = 0
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    queued_tokens: int = 0
    latencies_ms: list[float] = field(default_factory=list)


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
                second.latencies_ms.append(latency_ms)

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
            latencies = sorted(each for second in kept for each in second.latencies_ms)
            sums = {
                name: sum(getattr(second, name) for second in kept)
                for name in ("requests", "texts", "tokens", "errors", "rejected")
            }
            active = max(1, sum(1 for second in kept if second.tokens))
            return {
                "last_minute": {
                    **sums,
                    "texts_per_s": sums["texts"] / active,
                    "tokens_per_s": sums["tokens"] / active,
                    **{f"p{share}_ms": percentile(latencies, share) for share in (50, 95, 99)},
                },
                "per_second": {
                    "texts": [second.texts for second in kept],
                    "p95_ms": [percentile(sorted(second.latencies_ms), 95) for second in kept],
                    "queued_tokens": [second.queued_tokens for second in kept],
                },
            }

    def _now(self) -> _Second:
        number = int(time.monotonic())
        if not self._seconds or self._seconds[-1].number != number:
            self._seconds.append(_Second(number))
        return self._seconds[-1]


def percentile(ordered: list[float], share: float) -> float | None:
    """Return a percentile of sorted values, the next larger value; None if there are none."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]
