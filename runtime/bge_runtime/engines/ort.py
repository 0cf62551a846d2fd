"""ONNX Runtime as an engine, on a CPU; `bge_runtime.engines.ort_cuda` has it on a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import (
    COMPUTE_HEADS,
    CUMULATIVE_LENGTHS,
    HEAD_OUTPUTS,
    UNIFORM_BATCH,
    Bundle,
    Variant,
    past_names_of,
)
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import (
    BatchLimits,
    EngineInfo,
    EngineOptions,
    PastInputs,
    graph_inputs,
    inference_error,
    split_by_text,
)
from bge_runtime.engines.linked_files import graph_beside_weights
from bge_runtime.engines.ort_providers import CPU, INSTALL_GPU, Provider
from bge_runtime.errors import (
    BundleError,
    DeviceError,
    EngineNotInstalledError,
    ProviderError,
)
from bge_runtime.system import Completion, call_and_note, default_threads

_TOKENS_PER_THREAD, _LEAST_BATCH_TOKENS = 256, 512
"""Measured on 2 cores with bge-base: 512 tokens a batch are as fast as any
number, 4,096 are 8 % slower, since the activations leave the second-level cache. So are 512 for
a thread that computes a batch of its own."""

_BATCH_OVERHEAD_TOKENS = 16
"""Measured likewise: a run costs about as much as 6 to 10 more tokens, whatever its size.
Rounded up for smaller models, where a run's fixed part weighs more."""

_LARGE_RUN_TOKENS = 4096
"""Runs of more give the memory of their intermediate results back to the system, and so does the
one behind them."""


class OrtEngine:
    """One ONNX Runtime session. See `bge_runtime.engines.Engine`."""

    provider: ClassVar[str] = CPU
    """Execution provider of its sessions."""

    device: ClassVar[str] = "cpu"
    """Kind of device that it serves."""

    has_cuda_graphs: ClassVar[bool] = False
    has_streams: ClassVar[bool] = False

    load = staticmethod(ort_providers.load)

    @classmethod
    def unavailable_reason(cls, variant: Variant) -> str | None:
        """Tell why this machine cannot run a variant; None if it can."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed"
        if variant.device != cls.device:
            return f"this version's {variant.engine} engine serves {cls.device} only"
        return None if cls.provider == CPU else ort_providers.missing_requirement(cls.provider)

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Open a session and check that it runs where it was asked to.

        Raises:
            EngineNotInstalledError: If onnxruntime is not installed.
            DeviceError: If this engine does not serve the variant's device.
            BundleError: If ONNX Runtime cannot read the graph.
            ProviderError: If there is no provider for it, or the session runs on another one.
        """
        try:
            ort = self.load()
        except (ImportError, OSError) as error:
            raise EngineNotInstalledError(
                "variant "
                f"{variant.name!r} runs on ONNX Runtime, and onnxruntime cannot be imported "
                f"({error}). Run `pip install 'bge-runtime[cpu]'`"
            ) from error
        if variant.device != self.device:
            raise DeviceError(
                f"requested device {variant.device!r}, but this version's {variant.engine} engine "
                f"serves {self.device}"
            )
        if (reason := self.unavailable_reason(variant)) is not None:
            raise ProviderError(
                f"requested device {variant.device!r}, where variant {variant.name!r} runs on "
                f"{self.provider}, but {reason}. Pass devices='cpu'; or, {INSTALL_GPU}"
            )
        self._ort = ort
        self._bundle, self._graph = bundle, bundle.graph(variant.graph)
        self._index = options.device_index
        self._threads = options.threads or default_threads()
        # However many threads call it, no more compute than were asked for.
        self._turns: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._threads):
            self._turns.put(None)
        self._leading = threading.Lock()
        self._session: Any = self._first_session()
        self._was_large = False
        self._run_options: Any = self._new_run_options()
        self._large_run_options: Any = self._new_run_options()
        self._large_run_options.add_run_config_entry(
            "memory.enable_memory_arena_shrinkage", "cpu:0"
        )
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._input_names = frozenset(shapes)
        self._packed, self._even = CUMULATIVE_LENGTHS in shapes, UNIFORM_BATCH in shapes
        self._past = PastInputs(
            {name: (shapes[name][1], shapes[name][3]) for name in past_names_of(shapes)}
        )
        self.batches = BatchLimits(
            tokens=max(self._threads * _TOKENS_PER_THREAD, _LEAST_BATCH_TOKENS),
            parallel_tokens=_LEAST_BATCH_TOKENS,
            overhead_tokens=_BATCH_OVERHEAD_TOKENS,
        )
        self.cuda_graph_engine: OrtEngine | None = None
        self.past_names = self._past.names
        self.past_token_bytes = self._past.token_bytes
        self.info = EngineInfo(
            engine=variant.engine,
            version=ort.__version__,
            device=variant.device,
            precision=variant.precision,
            provider=self._session.get_providers()[0],
            variant=variant.name,
            threads=self._threads,
            streams=self._threads if self.provider == CPU else 1,
        )

    def _first_session(self) -> Any:
        return self._opened([(CPU, {})])

    def _new_run_options(self) -> Any:
        return self._ort.RunOptions()

    def _opened(self, providers: Sequence[Provider]) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Reuses buffers of the last shape; here nearly every batch has a new one.
        options.enable_mem_pattern = False
        # A plan to give a freed buffer to a later tensor keeps it from all tensors in between:
        # without it 26 batches of mixed length take 73 MB above the model, not 126 (bge-base),
        # and one of 8192 tokens 0.5 GB, not 0.7 (BGE-M3), in the same time, on a CPU.
        options.enable_mem_reuse = self.provider != CPU
        # Idle threads look for work without sleep, a millisecond and more, on the very
        # processors that another session or program wants: one query took 21 ms alone and
        # 49 ms in turns with two other models (bge-base, 2 cores); with 50 us, 20 ms both ways.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        # Errors are raised; on stderr as well they would be said twice.
        options.log_severity_level = 4
        path: Path = self._bundle.path / self._graph.file
        try:
            with graph_beside_weights(self._bundle, self._graph, follows_graph=True) as file:
                return ort_providers.open_session(self._ort, file, options, providers)
        except (BundleError, ProviderError):
            raise
        except Exception as error:  # one unrelated class for each status code
            raise BundleError(
                f"ONNX Runtime {self._ort.__version__} cannot open {path} (opset "
                f"{self._graph.opset}) on {providers[0][0]}: {error}"
            ) from error

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        return self._run_in(self._session, input_ids, attention_mask, outputs, past)

    def _run_in(
        self,
        session: Any,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        past: Sequence[NDArray[np.float32]] | None,
    ) -> list[NDArray[np.float32]]:
        if self._even and not attention_mask.all():
            return self._run_by_length(session, input_ids, attention_mask, outputs)
        feeds = graph_inputs(self._input_names, input_ids, attention_mask) | self._past.feeds(past)
        if COMPUTE_HEADS in self._input_names:
            # Every output of a graph is computed, whichever are asked for.
            feeds[COMPUTE_HEADS] = np.array(any(name in HEAD_OUTPUTS for name in outputs))
        try:
            results = self._computed(session, outputs, feeds)
        except Exception as error:  # one unrelated class for each status code
            raise inference_error("ONNX Runtime", input_ids, error) from error
        if self._packed:
            pairs = zip(outputs, results, strict=True)
            return [split_by_text(name, values, attention_mask) for name, values in pairs]
        return results

    def _run_by_length(
        self,
        session: Any,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
    ) -> list[NDArray[np.float32]]:
        lengths = attention_mask.sum(axis=1)
        together: dict[str, NDArray[Any]] = {}
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            ids = np.ascontiguousarray(input_ids[rows, :length])
            found = self._run_in(session, ids, np.ones_like(ids), outputs, None)
            for name, values in zip(outputs, found, strict=True):
                by_token = name in HEAD_OUTPUTS and values.dtype != object
                rest = (int(lengths.max()),) if by_token else values.shape[1:]
                all_rows = together.setdefault(
                    name, np.zeros((len(lengths), *rest), dtype=values.dtype)
                )
                if by_token:
                    all_rows[rows, :length] = values
                else:
                    all_rows[rows] = values
        return [together[name] for name in outputs]

    def _computed(
        self, session: Any, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        large = feeds["input_ids"].size > _LARGE_RUN_TOKENS
        # The results of a large run are still there when it ends, and keep what surrounds them.
        options = self._large_run_options if large or self._was_large else self._run_options
        self._was_large = large
        turns: list[None] = []
        leads: list[bool] = []
        try:
            call_and_note(turns, self._turns.get, True)
            # The first of several batches has its caller's thread and whichever of the session's
            # are idle; each other one has one of these. A second caller that computed by itself
            # would be one thread too many: two at once were 0.88 to 1.1 times as fast as one by
            # one, this way they are 1.08 to 1.29 times (2 cores with AVX2; bge-base, bge-small).
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
                if turns:
                    self._turns.put(None)

    def release_after_fork(self) -> None:
        """Leak the session; see `bge_runtime.engines.Engine.release_after_fork`."""
        leak(self._session)
        self._session = None


def _run_on_own_thread(
    session: Any, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], options: Any
) -> list[NDArray[np.float32]]:
    """Run a batch on a thread of the session's own, and wait for it."""
    done = Completion()
    answer: list[tuple[list[NDArray[np.float32]], str]] = []

    def take(results: list[NDArray[np.float32]], _: object, error: str) -> None:
        answer.append((results, error))
        done.set()

    began: list[object] = []
    try:
        call_and_note(began, session.run_async, list(outputs), feeds, take, None, options)
    finally:
        if began:
            done.wait()
    results, error = answer[0]
    if error:
        raise RuntimeError(error)
    return results


def leak(session: object) -> None:
    """Keep an object for good, so that nothing of it is closed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
