"""The texts of one request, from its tokens to its outputs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import Batch

if TYPE_CHECKING:
    from bge_runtime.serving.scheduling.execution import EngineGroup


class WorkCancelledError(Exception):
    """Nobody waits for the work any more."""


class Collector(Protocol):
    """Collects the outputs of a request's texts, from several threads."""

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> object:
        """Keep the outputs of some texts; ``batch.rows`` are their positions in the request."""
        ...


class BatchKey(NamedTuple):
    """What texts must have in common to be in one batch.

    Attributes:
        engines: The engines of their model.
        outputs: Names of the graph's outputs to compute.
        prefix: Tokens that they probably begin with, as bytes; empty for encoders.
    """

    engines: EngineGroup
    outputs: tuple[str, ...]
    prefix: bytes = b""


class Work:
    """The texts of one request.

    Attributes:
        key: What texts in one batch must have in common.
        tokens: Token ids of each text.
        outputs: Collects the outputs.
        bulk: Whether it waits in the lane for bulk work.
        deadline_s: Time (of `time.monotonic`) after which nobody waits for it; None for never.
        longest: Tokens of its longest text.
        queued_tokens: Tokens of the texts that are in no batch yet.
        queued_s: When it was queued.
        started_s: When its first batch was started; None before.
        ended_s: When it was done; None before.
        compute_s: Seconds that its batches took, one after the other.
        error: Why it failed; None if it has not.
    """

    __slots__ = (
        "_claim",
        "_on_done",
        "_remaining",
        "bulk",
        "compute_s",
        "deadline_s",
        "ended_s",
        "error",
        "key",
        "longest",
        "outputs",
        "queued_s",
        "queued_tokens",
        "started_s",
        "tokens",
    )

    def __init__(
        self,
        key: BatchKey,
        tokens: Sequence[NDArray[np.int64]],
        outputs: Collector,
        *,
        bulk: bool,
        on_done: Callable[[Work], object],
        deadline_s: float | None = None,
    ) -> None:
        """Prepare the work; ``on_done`` is called once, from any thread."""
        self.key, self.tokens, self.outputs = key, tokens, outputs
        self.bulk, self.deadline_s = bulk, deadline_s
        self.queued_tokens, self.longest = sum(map(len, tokens)), max(map(len, tokens))
        self.queued_s = time.monotonic()
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self.compute_s = 0.0
        self.error: Exception | None = None
        self._on_done = on_done
        self._remaining = len(tokens)
        self._claim = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether it is done, has failed or was cancelled."""
        return self.ended_s is not None

    def is_late(self, now_s: float) -> bool:
        """Return whether its deadline has passed."""
        return self.deadline_s is not None and now_s >= self.deadline_s

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        """Keep the outputs of some texts; ``batch.rows`` are their positions in the work."""
        if self.is_over:
            return
        self.outputs.add(batch, outputs)
        with self._claim:
            self._remaining -= len(batch.rows)
            done = not self._remaining
        if done:
            self.end(None)

    def end(self, error: Exception | None) -> bool:
        """End the work, and return whether it had not ended before.

        Args:
            error: Why it failed; None if it is done.
        """
        with self._claim:
            if self.ended_s is not None:
                return False
            self.ended_s = time.monotonic()
            self.error = error
        self._on_done(self)
        return True
