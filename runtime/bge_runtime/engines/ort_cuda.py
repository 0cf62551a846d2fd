"""ONNX Runtime on an NVIDIA GPU.

Statements about ONNX Runtime's calls into CUDA were counted with version 1.31.1 and libraries that
imitate CUDA's and compute nothing (``make gpu-wheel``). Times are an H100's or an H200's with
bge-large.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import TOKEN_OFFSET, UNIFORM_LENGTH, Bundle, Variant
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import BatchLimits, EngineOptions, is_out_of_memory
from bge_runtime.engines.cuda_graphs import CudaGraphEngine
from bge_runtime.engines.cuda_threads import CudaThreads
from bge_runtime.engines.ort_providers import CUDA_PROVIDER
from bge_runtime.engines.ort_session import Feeds, OrtSession
from bge_runtime.system import default_threads

_BATCH_TOKENS, _PACKED_BATCH_TOKENS = 16384, 32768
"""Tokens of a batch. Without padding, mixed and natural lengths were 0 to 4 % slower with 16,384,
and with 65,536 1 to 2 % faster for twice the memory: 268 MB for the widest tensor of bge-large at
32,768. With padding nothing has been measured."""

_CONCURRENT_RUNS = 2
"""Batches in progress at once: while one is computed, the next one is prepared, and the vectors of
the last one are normalized. PackedMultiHeadAttention also waits for the GPU once a layer, to check
its input: the other batch fills that gap."""

_UNIFORM_LENGTH_TOKENS = 8192
"""Tokens of a batch from which on the branch for texts of one length is 3 to 5 % faster, and 5 to
8 % with two batches in progress (an H200, where that branch is cuDNN's attention)."""

_UNIFORM_LENGTH_RUNS = 32
"""Batches of one shape before that branch is used. cuDNN plans for each shape and thread, which
takes far longer than the 1 to 2 of 42 ms that a run of 32,768 tokens then saves: shapes that pay
for it are those of many texts that were truncated to one length."""


class OrtCudaEngine:
    """A session of ONNX Runtime's CUDA provider. See `bge_runtime.engines.Engine`."""

    package: ClassVar[str] = "onnxruntime"
    has_cuda_graphs: ClassVar[bool] = True
    accepts_streams: ClassVar[bool] = False

    load = staticmethod(ort_providers.load)

    @staticmethod
    def unavailable_reason(precision: str) -> str | None:  # noqa: ARG004  # one for all
        """Return why this machine cannot run a precision on the engine, or None if it can."""
        return ort_providers.missing_requirement(CUDA_PROVIDER)

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Open a session and check that it runs on the GPU.

        With a ``cuda_graph_variant`` a single text of up to 64 tokens is run as a CUDA graph by
        another session, which has weights and working memory of its own on the GPU.

        Raises:
            EngineNotInstalledError: If onnxruntime is not installed.
            BundleError: If ONNX Runtime cannot read the graph.
            ProviderError: If the provider is unavailable, or the session runs on another one.
            EngineError: If CUDA graphs are requested and cannot be captured.
        """
        ort = ort_providers.load_for(variant)
        ort_providers.require(CUDA_PROVIDER, variant, self.unavailable_reason(variant.precision))
        threads = options.threads or default_threads()
        cuda = (CUDA_PROVIDER, ort_providers.cuda_options(options.device_index))
        graph = bundle.graph(variant.graph)
        self._session = OrtSession.open(ort, bundle, graph, [cuda], threads=threads)
        self._run_options: Any = ort.RunOptions()
        self._threads = CudaThreads(_CONCURRENT_RUNS)
        self._uniform_length = (
            _UniformLengthBranch(always=options.force_uniform_length)
            if UNIFORM_LENGTH in self._session.input_names
            else None
        )
        packed = self._session.packed
        tokens = _PACKED_BATCH_TOKENS if packed else _BATCH_TOKENS
        self.batches = BatchLimits(
            tokens=tokens,
            parallel_tokens=tokens,
            # Padding costs a packed batch nothing; other batches may hold an eighth of it.
            overhead_tokens=tokens if packed else tokens // 8,
            concurrent_runs=_CONCURRENT_RUNS,
        )
        self.past_names = self._session.past.names
        self.past_token_bytes = self._session.past.token_bytes
        self.info = self._session.info(variant, version=ort.__version__, threads=threads)
        self.cuda_graph_engine: CudaGraphEngine | None = None
        if options.cuda_graph_variant is not None:
            self.cuda_graph_engine = CudaGraphEngine(
                bundle, options.cuda_graph_variant, replace(options, cuda_graph_variant=None)
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
        rows, columns = input_ids.shape
        graphs = self.cuda_graph_engine
        if graphs is not None and graphs.accepts(rows, columns, outputs):
            return graphs.run(input_ids, attention_mask, outputs)
        return self._session.run(self._compute, input_ids, attention_mask, outputs, past)

    def _compute(
        self, session: Any, outputs: Sequence[str], feeds: Feeds
    ) -> list[NDArray[np.float32]]:
        def run(feeds: Feeds) -> list[NDArray[np.float32]]:
            call = partial(session.run, list(outputs), feeds, self._run_options)
            return self._threads.run(call)

        if self._uniform_length is None:
            return run(feeds)
        if self._uniform_length.accepts(feeds):
            try:
                return run(feeds)
            except Exception as error:  # one unrelated class for each status code
                if is_out_of_memory(error):
                    raise
                self._uniform_length.disable(error)
        return run({**feeds, UNIFORM_LENGTH: np.array(False)})

    def release_after_fork(self) -> None:
        """Drop the sessions without closing them; see `Engine.release_after_fork`."""
        self._session.release_after_fork()
        if self.cuda_graph_engine is not None:
            self.cuda_graph_engine.release_after_fork()


class _UniformLengthBranch:
    """Decides which batches use a graph's branch for texts of one length."""

    def __init__(self, *, always: bool = False) -> None:
        """Accept large batches of shapes that came up often, or ``always`` all of one length."""
        self._tokens = 0 if always else _UNIFORM_LENGTH_TOKENS
        self._runs = 0 if always else _UNIFORM_LENGTH_RUNS
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._disabled = False
        self._lock = threading.Lock()

    def accepts(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether a batch uses the branch."""
        if not feeds[UNIFORM_LENGTH] or feeds["input_ids"].size < self._tokens or self._disabled:
            return False
        shape = feeds[TOKEN_OFFSET].shape
        with self._lock:
            self._seen[shape] += 1
            return self._seen[shape] > self._runs

    def disable(self, error: Exception) -> None:
        """Stop using the branch, and warn about it once."""
        with self._lock:
            warned, self._disabled = self._disabled, True
        if not warned:
            warnings.warn(
                f"the graph's branch for texts of one length fails here ({error}). It is left out; "
                "the other branch may be some 5 % slower",
                stacklevel=2,
            )
