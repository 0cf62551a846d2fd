"""Batches side by side on a CPU, each run by one thread.

Threads that compute one batch together wait for each other after every step of every layer, and
for whichever of them the system has put aside meanwhile. With a batch each they don't: on 2 cores
with AVX2 ``encode`` of real texts in fp32 is 1.09 to 1.16 times as fast. A single batch is still
faster on all threads.

A session of ONNX Runtime computes either way. A model of OpenVINO has threads that work together
or threads on their own, so that there the second way takes a second model, with weights of its own.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bge_runtime.engines import Engine
from bge_runtime.errors import BgeError
from bge_runtime.system import available_memory, call_and_note

_PAYS_AFTER_TOKENS = 16384
"""Tokens that could have been computed side by side, before an engine is opened for that. With
bge-base that takes 1.9 s (OpenVINO, int8), which a tenth or two of the time of that many tokens
makes up for: 35 s with AVX2, 8 s in bf16."""

_LEAST_RUN_TOKENS = 128
"""Measured on 2 cores with bge-base: two runs of fewer take as long as one of both."""

_MOST_RUN_TOKENS = 2048
"""A longer batch is run alone and on all threads: its intermediate results would be in memory
once for each of them (0.4 GB for 8192 tokens of BGE-M3)."""

_UNEVEN = 1.2
"""A thread's largest share, to an even one, at which threads on their own still gain."""

_MEMORY_FACTOR = 2
"""Weights are there once more; as much again is left free."""


class ParallelBatches:
    """An engine whose threads compute a batch each: the one that is there, or one for that.

    A second one is opened when that pays, and has weights of its own.
    """

    def __init__(self, *, weights: int) -> None:
        """Open nothing yet; ``weights`` is the size of their file, in bytes."""
        self._weights = weights
        self._opened: Engine | None = None
        self._tokens = 0
        self._told = self._refused = False
        self._opening = threading.Lock()
        self._long = threading.Lock()

    def engine_for(
        self, lengths: Sequence[int], together: Engine, *, open_apart: Callable[[], Engine]
    ) -> Engine:
        """Give the engine that is fastest for some texts.

        Args:
            lengths: Their tokens.
            together: The one that computes a batch with all threads.
            open_apart: Opens one that computes as many batches with a thread each.
        """
        if not _can_be_shared_out(lengths, together):
            return together
        if together.info.streams > 1:
            return _Sharing(together, together, self._long)
        if self._opened is None and not self._refused:
            self._open(lengths, open_apart)
        apart = self._opened
        return together if apart is None else _Sharing(together, apart, self._long)

    @property
    def opened(self) -> Engine | None:
        """The engine that was opened for batches side by side; None while there is none."""
        return self._opened

    def _open(self, lengths: Sequence[int], open_apart: Callable[[], Engine]) -> None:
        held: list[bool] = []
        try:
            # Other threads need not wait for what makes them faster.
            call_and_note(held, self._opening.acquire, False)
            if not held[0]:
                return
            self._tokens += sum(_short(lengths))
            done = self._opened is not None or self._refused  # by a call that came first
            if done or self._tokens < _PAYS_AFTER_TOKENS:
                return
            available, needed = available_memory(), _MEMORY_FACTOR * self._weights
            if available is None or available >= needed:
                self._opened = open_apart()
            elif not self._told:  # memory may be there later
                self._told = True
                _tell(
                    f"takes the weights once more, for which {needed >> 20:,} MB must be free, "
                    f"and {available >> 20:,} are. Pass parallel_batches=False to do without it"
                )
        except BgeError as error:
            self._refused = True
            _tell(f"cannot be opened: {error}")
        finally:
            if held and held[0]:
                self._opening.release()

    def release_after_fork(self) -> None:
        """Let go of what was opened; see `bge_runtime.engines.Engine.release_after_fork`."""
        if self._opened is not None:
            self._opened.release_after_fork()


class _Sharing:
    """The engine for short batches side by side, and the one for a long one. An `Engine`."""

    def __init__(self, together: Engine, apart: Engine, long: threading.Lock) -> None:
        self._together, self._apart, self._long = together, apart, long
        self.info = apart.info
        self.batches = replace(
            apart.batches,
            tokens=apart.batches.parallel_tokens,
            concurrent_runs=apart.info.streams,
        )
        self.cuda_graph_engine = None
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

    def release_after_fork(self) -> None:
        """Do nothing: engines are let go of by those who opened them."""


def _tell(reason: str) -> None:
    warnings.warn(
        f"batches are computed one after the other, since an engine for several at once {reason}",
        stacklevel=2,
    )


def _can_be_shared_out(lengths: Sequence[int], together: Engine) -> bool:
    """Tell whether texts fill a batch for each thread, all about as large."""
    short = _short(lengths)
    tokens, threads = sum(short), together.info.threads
    enough = max(together.batches.tokens, threads * _LEAST_RUN_TOKENS)
    return tokens > enough and max(short) * threads <= _UNEVEN * tokens


def _short(lengths: Sequence[int]) -> list[int]:
    return [length for length in lengths if length <= _MOST_RUN_TOKENS]
