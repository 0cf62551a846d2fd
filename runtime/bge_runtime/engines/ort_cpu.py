"""ONNX Runtime on a CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import BatchLimits, EngineOptions
from bge_runtime.engines.ort_providers import CPU_PROVIDER
from bge_runtime.engines.ort_session import Feeds, OrtSession
from bge_runtime.system import call_and_note, default_threads, take_one

_TOKENS_PER_THREAD, _LEAST_BATCH_TOKENS = 256, 512
"""Measured on 2 cores with bge-base: batches of 512 tokens are as fast as any, and batches of
4,096 are 8 % slower, since the activations no longer fit the second-level cache. 512 tokens are
also best for a thread that computes a batch alone."""

_BATCH_OVERHEAD_TOKENS = 16
"""Measured likewise: starting a batch of any size costs about as much as 6 to 10 more tokens.
Rounded up for smaller models, for which it costs relatively more."""

_LARGE_BATCH_TOKENS = 4096
"""Above this size the memory arena is shrunk, after this run and after the next."""


class OrtCpuEngine:
    """A session of ONNX Runtime's CPU provider. See `bge_runtime.engines.Engine`."""

    package: ClassVar[str] = "onnxruntime"
    has_cuda_graphs: ClassVar[bool] = False
    accepts_streams: ClassVar[bool] = False
    cuda_graph_engine: ClassVar[None] = None

    load = staticmethod(ort_providers.load)

    @staticmethod
    def unavailable_reason(precision: str) -> str | None:  # noqa: ARG004  # all run
        """Return why this machine cannot run a precision on the engine, or None if it can."""
        return ort_providers.missing_requirement(CPU_PROVIDER)

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Open a session and check that it runs on the CPU.

        Raises:
            EngineNotInstalledError: If onnxruntime is not installed.
            BundleError: If ONNX Runtime cannot read the graph.
            ProviderError: If the session runs on another provider.
        """
        ort = ort_providers.load_for(variant)
        threads = options.threads or default_threads()
        # However many threads call this engine, no more of them compute than were asked for.
        self._slots: SimpleQueue[None] = SimpleQueue()
        for _ in range(threads):
            self._slots.put(None)
        self._leading = threading.Lock()
        self._was_large = False
        self._run_options: Any = ort.RunOptions()
        self._large_run_options: Any = ort.RunOptions()
        self._large_run_options.add_run_config_entry(
            "memory.enable_memory_arena_shrinkage", "cpu:0"
        )
        graph = bundle.graph(variant.graph)
        options.on_compile()
        self._session = OrtSession.open(ort, bundle, graph, [(CPU_PROVIDER, {})], threads=threads)
        self.batches = BatchLimits(
            tokens=max(threads * _TOKENS_PER_THREAD, _LEAST_BATCH_TOKENS),
            parallel_tokens=_LEAST_BATCH_TOKENS,
            overhead_tokens=_BATCH_OVERHEAD_TOKENS,
        )
        self.past_names = self._session.past.names
        self.past_token_bytes = self._session.past.token_bytes
        self.info = self._session.info(
            variant, version=ort.__version__, threads=threads, streams=threads
        )

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        return self._session.run(self._compute, input_ids, attention_mask, outputs, past)

    def _compute(
        self, session: Any, outputs: Sequence[str], feeds: Feeds
    ) -> list[NDArray[np.float32]]:
        large = feeds["input_ids"].size > _LARGE_BATCH_TOKENS
        # The results of a large batch still exist when it ends, and keep the memory around them
        # from being returned: the next batch returns it.
        options = self._large_run_options if large or self._was_large else self._run_options
        self._was_large = large
        # Not `with`: Ctrl-C between acquire and try would lose the slot; see system/background.py.
        slots: list[None] = []
        leads: list[bool] = []
        try:
            call_and_note(slots, self._slots.get, True)
            # The first of several concurrent batches runs in its caller's thread and on all idle
            # threads of the session; each other batch runs on one thread of the session. If a
            # second caller computed in its own thread as well, there would be one thread too many:
            # two batches at once were then 0.88 to 1.1 times as fast as one after the other, and
            # are 1.08 to 1.29 times as fast this way (2 cores with AVX2; bge-base, bge-small).
            call_and_note(leads, self._leading.acquire, False)
            if not leads[0]:
                return _run_on_own_thread(session, outputs, feeds, options)
            results: list[NDArray[np.float32]] = session.run(list(outputs), feeds, options)
            return results
        finally:
            try:
                if leads and leads[0]:
                    self._leading.release()
            finally:
                if slots:
                    self._slots.put(None)

    def release_after_fork(self) -> None:
        """Drop the session without closing it; see `Engine.release_after_fork`."""
        self._session.release_after_fork()


def _run_on_own_thread(
    session: Any, outputs: Sequence[str], feeds: Feeds, options: Any
) -> list[NDArray[np.float32]]:
    """Run a batch on one of the session's own threads, and wait for it."""
    # The session's thread runs no bytecode: `put` is C code. Between two steps of Python code it
    # could have to wait for the interpreter's lock, while this thread goes on and the process
    # exits: Python then ends the waiting thread, which ONNX Runtime's handlers turn into an abort
    # ("exception not rethrown"). Tests that fork saw it on a busy machine.
    answers: SimpleQueue[list[NDArray[np.float32]]] = SimpleQueue()
    started: list[object] = []
    answer: list[list[NDArray[np.float32]]] = []
    try:
        # Called with the results, None and a message, of which `put` keeps the first.
        call_and_note(started, session.run_async, list(outputs), feeds, answers.put, None, options)
    finally:
        if started:
            take_one(answer, answers)
    # Without results the message is lost: a second try raises the error, or succeeds.
    results: list[NDArray[np.float32]] = answer[0] or session.run(list(outputs), feeds, options)
    return results
