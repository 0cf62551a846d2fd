"""Parallel batches on a CPU, each computed by one thread.

Threads that compute one batch together wait for each other after every step of every layer, and for
whichever of them the system has paused. With a batch of its own, no thread waits: on 2 cores with
AVX2, ``encode`` of real texts in fp32 is 1.09 to 1.16 times as fast. A single batch is still faster
on all threads.

A session of ONNX Runtime can do both. A model of OpenVINO is compiled for either latency (all
threads on one batch) or throughput (one stream for each thread), so parallel batches need a second
model there. Both read the file of weights in one place in memory; each makes its own copy of the
matrices when it first runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bge_runtime.engines import Engine
from bge_runtime.errors import BgeError
from bge_runtime.system import available_memory, call_and_note, warn_user

_OPEN_AFTER_TOKENS = 16384
"""Tokens that could have been computed in parallel before a throughput engine is opened. That takes
1.9 s with bge-base (OpenVINO, int8), and saves 10 to 20 % of the time of so many tokens: of 35 s
with AVX2, of 8 s in bf16."""

_MIN_STREAM_TOKENS = 128
"""Minimum tokens of a batch in one stream. On 2 cores with bge-base, two smaller batches in
parallel take as long as one batch of both."""

MAX_STREAM_TOKENS = 2048
"""Maximum tokens of a batch in one stream. A larger batch runs alone on all threads; otherwise its
intermediate results would be in memory once for each stream (0.4 GB for 8192 tokens of BGE-M3)."""

_MAX_IMBALANCE = 1.2
"""Parallel batches are faster while the longest text has at most this many times an equal share of
the tokens for each thread."""

_MEMORY_FACTOR = 2
"""Free memory that is needed, in sizes of the weights: one copy, and as much again left free."""


class ParallelBatches:
    """The choice between a latency engine and a throughput engine on one CPU.

    A second engine is opened only when that pays off, since it has its own copy of the weights.

    Attributes:
        opened: The engine that was opened for throughput; None while there is none.
    """

    def __init__(self, *, weights_bytes: int) -> None:
        """Open nothing yet; ``weights_bytes`` is the size of the file of weights."""
        self.opened: Engine | None = None
        self._weights_bytes = weights_bytes
        self._tokens = 0
        self._warned = self._refused = False
        self._opening = threading.Lock()
        self._long = threading.Lock()

    def engine_for(
        self, lengths: Sequence[int], latency: Engine, open_throughput: Callable[[], Engine]
    ) -> Engine:
        """Return the engine that is fastest for some texts.

        Args:
            lengths: Tokens of each text.
            latency: The engine that computes a batch with all threads.
            open_throughput: Opens an engine with one stream for each thread.
        """
        if not _fill_streams(lengths, latency):
            return latency
        if latency.info.streams > 1:
            return _StreamEngine(latency, latency, self._long)
        if self.opened is None and not self._refused:
            self._open(lengths, open_throughput)
        throughput = self.opened
        return latency if throughput is None else _StreamEngine(latency, throughput, self._long)

    def streams(self, latency: Engine, open_throughput: Callable[[], Engine]) -> Engine | None:
        """Return an engine for parallel batches, opened now; None if it cannot be, which is warned.

        Args:
            latency: The engine that computes a batch with all threads.
            open_throughput: Opens an engine with one stream for each thread.
        """
        if latency.info.streams > 1:
            return _StreamEngine(latency, latency, self._long)
        if self.opened is None and not self._refused:
            self._tokens = _OPEN_AFTER_TOKENS
            self._open([], open_throughput)
        return None if self.opened is None else _StreamEngine(latency, self.opened, self._long)

    def release_after_fork(self) -> None:
        """Release the throughput engine; see `bge_runtime.engines.Engine.release_after_fork`."""
        if self.opened is not None:
            self.opened.release_after_fork()

    def _open(self, lengths: Sequence[int], open_throughput: Callable[[], Engine]) -> None:
        held: list[bool] = []
        try:
            # Other threads do not wait for what only makes them faster.
            call_and_note(held, self._opening.acquire, False)
            if not held[0]:
                return
            self._tokens += sum(_short(lengths))
            done = self.opened is not None or self._refused  # by a call that came first
            if done or self._tokens < _OPEN_AFTER_TOKENS:
                return
            available, needed = available_memory(), _MEMORY_FACTOR * self._weights_bytes
            if available is None or available >= needed:
                self.opened = open_throughput()
            elif not self._warned:  # there may be enough memory later
                self._warned = True
                _warn(
                    f"not enough memory for a second engine (needs {needed >> 20:,} MB, "
                    f"{available >> 20:,} MB are free). Pass parallel_batches=False to do without"
                )
        except BgeError as error:
            self._refused = True
            _warn(f"an engine for parallel batches cannot be opened: {error}")
        finally:
            if held and held[0]:
                self._opening.release()


class _StreamEngine:
    """Two engines as one: streams for short batches, all threads for a long one. An `Engine`."""

    def __init__(self, latency: Engine, throughput: Engine, long: threading.Lock) -> None:
        self._latency, self._throughput, self._long = latency, throughput, long
        self.info = throughput.info
        self.batches = replace(
            throughput.batches,
            tokens=throughput.batches.parallel_tokens,
            concurrent_runs=throughput.info.streams,
        )
        self.cuda_graph_engine = None
        self.past_names = throughput.past_names
        self.past_token_bytes = throughput.past_token_bytes

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        if input_ids.size <= MAX_STREAM_TOKENS:
            return self._throughput.run(input_ids, attention_mask, outputs, past=past)
        with self._long:
            return self._latency.run(input_ids, attention_mask, outputs, past=past)

    def release_after_fork(self) -> None:
        """Do nothing: whoever opened the two engines releases them."""


def _warn(reason: str) -> None:
    warn_user(f"running one batch at a time: {reason}")


def _fill_streams(lengths: Sequence[int], latency: Engine) -> bool:
    """Return whether texts fill a batch for each thread, all of about the same size."""
    short = _short(lengths)
    tokens, threads = sum(short), latency.info.threads
    enough = max(latency.batches.tokens, threads * _MIN_STREAM_TOKENS)
    return tokens > enough and max(short) * threads <= _MAX_IMBALANCE * tokens


def _short(lengths: Sequence[int]) -> list[int]:
    return [length for length in lengths if length <= MAX_STREAM_TOKENS]
