"""Batches side by side on a CPU, each run by one thread.

Threads that compute one batch together wait for each other after every step of every layer, and
for whichever of them the system has put aside meanwhile. With a batch each they don't: bare runs in
fp32 on 2 cores with AVX2 gave 1.06 (bge-base) to 1.2 times (bge-small) the tokens a second, and
``encode`` of real texts 1.1 to 1.2 times. A single batch is still faster on all threads.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime.engines import Engine
from bge_runtime.errors import BgeError
from bge_runtime.memory import available_memory

_PAYS_AFTER_TOKENS = 16384
"""Tokens that could have been computed side by side, before an engine is opened for that. With
bge-base that takes 0.8 s (ONNX Runtime, fp32) to 1.9 s (OpenVINO, int8), which a tenth or two of
the time of that many tokens makes up for: 35 s with AVX2, 8 s in bf16."""

_LEAST_RUN_TOKENS = 128
"""Measured on 2 cores with bge-base: two runs of fewer take as long as one of both."""

_MOST_RUN_TOKENS = 2048
"""A longer batch is run alone and on all threads: its intermediate results would be in memory
once for each of them (0.4 GB for 8192 tokens of BGE-M3)."""

_UNEVEN = 1.2
"""A thread's largest share, to an even one, at which threads on their own still gain."""

_MEMORY_FACTOR = 2
"""Weights are there once more; as much again is left free."""


class SideBySide:
    """An engine whose threads compute a batch each, opened when that pays.

    It has weights of its own beside the other one's, since neither ONNX Runtime nor OpenVINO
    shares what it made of them.
    """

    def __init__(self, *, weights: int) -> None:
        """Open nothing yet; ``weights`` is the size of their file, in bytes."""
        self._weights = weights
        self._apart: Engine | None = None
        self._tokens = 0
        self._refused = False
        self._opening = threading.Lock()
        self._long = threading.Lock()

    def engine_for(
        self, lengths: Sequence[int], together: Engine, *, open_apart: Callable[[], Engine]
    ) -> Engine:
        """Give the engine that is fastest for some texts.

        Args:
            lengths: Their tokens.
            together: The one that computes each batch with all threads.
            open_apart: Opens the one that computes as many batches with a thread each.
        """
        if not _can_be_shared_out(lengths, together):
            return together
        if self._apart is None and not self._refused:
            self._open(sum(lengths), open_apart)
        apart = self._apart
        return together if apart is None else _Sharing(together, apart, self._long)

    @property
    def opened(self) -> Engine | None:
        """The engine that computes batches side by side; None while there is none."""
        return self._apart

    def _open(self, tokens: int, open_apart: Callable[[], Engine]) -> None:
        # Other threads need not wait for what makes them faster.
        if not self._opening.acquire(blocking=False):
            return
        try:
            self._tokens += tokens
            if self._apart is not None or self._tokens < _PAYS_AFTER_TOKENS:
                return
            available = available_memory()
            if available is not None and available < _MEMORY_FACTOR * self._weights:
                return
            self._apart = open_apart()
        except BgeError as error:
            self._refused = True
            warnings.warn(
                "batches are computed one after the other, since an engine for several at once "
                f"cannot be opened: {error}",
                stacklevel=2,
            )
        finally:
            self._opening.release()

    def abandon(self) -> None:
        """Let go of what was opened; see `bge_runtime.engines.Engine.abandon`."""
        if self._apart is not None:
            self._apart.abandon()


class _Sharing:
    """The engine for short batches, and the other one for long ones. An `Engine`."""

    def __init__(self, together: Engine, apart: Engine, long: threading.Lock) -> None:
        self._together, self._apart, self._long = together, apart, long
        self.info = apart.info
        self.batch_tokens = apart.batch_tokens
        self.batch_overhead_tokens = apart.batch_overhead_tokens
        self.parallel_runs = apart.parallel_runs
        self.past_names = apart.past_names
        self.past_token_bytes = apart.past_token_bytes

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        if input_ids.size <= _MOST_RUN_TOKENS:
            return self._apart.run(input_ids, attention_mask, outputs, past=past)
        with self._long:
            return self._together.run(input_ids, attention_mask, outputs, past=past)

    def abandon(self) -> None:
        """Do nothing: both engines are let go of by those who opened them."""


def _can_be_shared_out(lengths: Sequence[int], together: Engine) -> bool:
    """Tell whether texts fill a batch for each thread, all about as large."""
    short = [length for length in lengths if length <= _MOST_RUN_TOKENS]
    tokens, threads = sum(short), together.info.threads
    enough = max(together.batch_tokens, threads * _LEAST_RUN_TOKENS)
    return tokens > enough and max(short) * threads <= _UNEVEN * tokens
