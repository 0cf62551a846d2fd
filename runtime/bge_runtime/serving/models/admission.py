"""Which requests may wait, by the tokens and the time of what waits already."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.options import BULK_QUEUE_S, MIN_QUEUED_TOKENS, QUERY_QUEUE_S
from bge_runtime.serving.scheduling import EngineGroup, Scheduler


class Admission:
    """Admits the requests of one model to the two lanes, which it shares with other models."""

    def __init__(
        self, engines: EngineGroup, scheduler: Scheduler, *, max_queued_tokens: int | None
    ) -> None:
        """Start with nothing admitted.

        Args:
            engines: The model's engines, for their speed.
            scheduler: The scheduler of all models.
            max_queued_tokens: Tokens that may wait in each lane; None for what is computed in
                `QUERY_QUEUE_S` and `BULK_QUEUE_S`, and `MIN_QUEUED_TOKENS` at least.
        """
        self._engines, self._scheduler = engines, scheduler
        self._max_queued_tokens = max_queued_tokens
        # Tokens, about, of the texts that are tokenized now and will then be queued.
        self._coming = {False: 0, True: 0}

    def check(self, tokens: int, *, bulk: bool) -> None:
        """Refuse a request for which there is no room.

        A request that is larger than the queue counts as half of it: it is computed in slices.

        Args:
            tokens: Its tokens, about.
            bulk: The lane in which it will wait.

        Raises:
            RequestError: If it has to come again later.
        """
        coming = self._coming[bulk]
        queued = self._scheduler.queued_tokens(bulk=bulk) + coming
        room = self._max_queued_tokens or MIN_QUEUED_TOKENS
        if queued + min(tokens, room // 2) <= room:
            return
        # The lane is shared by all models, and they differ in speed: what counts is time.
        queued_s = self._scheduler.queued_s(bulk=bulk) + self._seconds(coming)
        room_s = BULK_QUEUE_S if bulk else QUERY_QUEUE_S
        own_s = min(self._seconds(tokens), room_s / 2)
        if self._max_queued_tokens is None and queued_s + own_s <= room_s:
            return
        if bulk:  # queries go first
            queued_s += self._scheduler.queued_s(bulk=False)
        wait_s = max(1, math.ceil(queued_s))
        raise RequestError(
            Kind.OVERLOADED,
            f"{queued:,} tokens wait already, for about {queued_s:.0f} s. Try again in {wait_s} s",
            headers={"retry-after": str(wait_s)},
        )

    @contextmanager
    def tokenizing(self, tokens: int, *, bulk: bool) -> Iterator[None]:
        """Count tokens, about, as waiting for as long as they are made."""
        self._coming[bulk] += tokens
        try:
            yield
        finally:
            self._coming[bulk] -= tokens

    @property
    def room_tokens(self) -> int:
        """Tokens of the model that may wait, in both lanes together."""
        if self._max_queued_tokens is not None:
            return 2 * self._max_queued_tokens
        rate = self._engines.tokens_per_s
        return sum(max(MIN_QUEUED_TOKENS, int(rate * s)) for s in (QUERY_QUEUE_S, BULK_QUEUE_S))

    def _seconds(self, tokens: int) -> float:
        rate = self._engines.tokens_per_s
        return tokens / rate if rate else 0.0
