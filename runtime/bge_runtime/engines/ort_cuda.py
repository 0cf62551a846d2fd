"""ONNX Runtime on an NVIDIA GPU.

What is said here of ONNX Runtime's calls into CUDA was counted with version 1.31.1 and libraries
in the place of CUDA's that compute nothing (``make gpu-wheel``); times are an H100's or an H200's
with bge-large.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import (
    SENTENCE_EMBEDDING,
    TOKEN_OFFSET,
    UNIFORM_LENGTH,
    Bundle,
    Variant,
)
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import EngineOptions, graph_inputs, is_out_of_memory
from bge_runtime.engines.ort import OrtEngine, leak
from bge_runtime.engines.ort_providers import CUDA
from bge_runtime.errors import EngineError
from bge_runtime.system import BackgroundTask

_BATCH_TOKENS, _PACKED_BATCH_TOKENS = 16384, 32768
"""Tokens of a batch. Without padding, mixed and natural lengths were 0 to 4 % slower with 16,384,
and with 65,536 1 to 2 % faster for twice the memory: 268 MB for the widest tensor of bge-large at
32,768. With padding nothing has been measured."""

_RUNS = 2
"""Batches that are under way at once: while one is computed, the next one is put together, and
the vectors of the last one are brought to unit length. PackedMultiHeadAttention waits for the GPU
once a layer, to see whether its input was right: the other batch fills that gap, too."""

_UNIFORM_LENGTH_TOKENS = 8192
"""Tokens of a batch from which on the branch for texts of one length is 3 to 5 % faster, with two
batches under way 5 to 8 % (an H200, where it is cuDNN's attention)."""

_UNIFORM_LENGTH_RUNS = 32
"""Batches of one shape before that branch takes over. cuDNN plans for each shape and thread, which
takes far longer than the 1 to 2 of 42 ms that a run of 32,768 tokens then saves: shapes that pay
for it are those of many texts that were cut at one length."""

_CAPTURED_TOKENS = 64
"""Longest text that is run as a CUDA graph: there are as many graphs as lengths."""

_NO_GRAPH = -1

_T = TypeVar("_T")


class OrtCudaEngine(OrtEngine):
    """One session of ONNX Runtime's CUDA provider. See `bge_runtime.engines.Engine`."""

    provider: ClassVar[str] = CUDA
    device: ClassVar[str] = "cuda"
    has_cuda_graphs: ClassVar[bool] = True
    _runs: ClassVar[int] = _RUNS

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
    ) -> None:
        """Open a session as `OrtEngine` does.

        With a ``cuda_graph_variant`` a single text of up to 64 tokens is run as a CUDA graph by
        another session, which has weights and working memory of its own on the GPU.

        Raises:
            EngineError: If CUDA graphs are requested and cannot be captured.
        """
        super().__init__(bundle, variant, options)
        # ONNX Runtime makes streams and handles of cuBLAS for every thread that ever calls it: here
        # it is called by the same few.
        self._workers = ThreadPoolExecutor(self._runs, thread_name_prefix="bge-cuda")
        # A packed batch has no padding to pay for; another one an eighth.
        tokens = _PACKED_BATCH_TOKENS if self._packed else _BATCH_TOKENS
        self.batches = replace(
            self.batches,
            tokens=tokens,
            overhead_tokens=tokens // (1 if self._packed else 8),
            concurrent_runs=self._runs,
        )
        self._uniform_length = (
            _UniformLengthBranch(always=options.force_uniform_length)
            if UNIFORM_LENGTH in self._input_names
            else None
        )
        if options.cuda_graph_variant is not None:
            self.cuda_graph_engine: CudaGraphEngine | None = CudaGraphEngine(
                bundle, options.cuda_graph_variant, replace(options, cuda_graph_variant=None)
            )

    def _first_session(self) -> Any:
        return self._opened([(CUDA, ort_providers.cuda_options(self._index))])

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
        if self.cuda_graph_engine is not None and self.cuda_graph_engine.takes(
            rows, columns, outputs
        ):
            return self.cuda_graph_engine.run(input_ids, attention_mask, outputs)
        return super().run(input_ids, attention_mask, outputs, past=past)

    def _computed(
        self, session: Any, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        def run(feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
            call = partial(session.run, list(outputs), feeds, self._run_options)
            return _run_in(self._workers, call)

        if self._uniform_length is None:
            return run(feeds)
        if self._uniform_length.takes(feeds):
            try:
                return run(feeds)
            except Exception as error:  # one unrelated class for each status code
                if is_out_of_memory(error):
                    raise
                self._uniform_length.leave_out(error)
        return run({**feeds, UNIFORM_LENGTH: np.array(False)})

    def release_after_fork(self) -> None:
        """Leak the sessions; see `bge_runtime.engines.Engine.release_after_fork`."""
        super().release_after_fork()
        if self.cuda_graph_engine is not None:
            self.cuda_graph_engine.release_after_fork()


def _run_in(workers: Executor, call: Callable[[], _T]) -> _T:
    """Run a call in one of the threads for it; in this one, where Python is ending."""
    background = BackgroundTask(call, executor=workers)
    try:
        background.start()
        return background.result()
    finally:
        background.wait()


class _UniformLengthBranch:
    """Which batches take a graph's branch for texts of one length."""

    def __init__(self, *, always: bool = False) -> None:
        """Choose large batches of shapes that came up often, or ``always`` all that can."""
        self._tokens = 0 if always else _UNIFORM_LENGTH_TOKENS
        self._runs = 0 if always else _UNIFORM_LENGTH_RUNS
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._left_out = False
        self._lock = threading.Lock()

    def takes(self, feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Tell whether a batch takes it."""
        if not feeds[UNIFORM_LENGTH] or feeds["input_ids"].size < self._tokens or self._left_out:
            return False
        shape = feeds[TOKEN_OFFSET].shape
        with self._lock:
            self._seen[shape] += 1
            return self._seen[shape] > self._runs

    def leave_out(self, error: Exception) -> None:
        """Take it no more, and say so once."""
        with self._lock:
            told, self._left_out = self._left_out, True
        if not told:
            warnings.warn(
                f"texts of one length have a branch of their own in the graph, which fails here "
                f"({error}). It is left out; the other one may be some 5 % slower",
                stacklevel=2,
            )


class CudaGraphEngine(OrtCudaEngine):
    """A session that runs single short texts, each as a CUDA graph."""

    _runs: ClassVar[int] = 1

    def __init__(self, bundle: Bundle, variant: Variant, options: EngineOptions) -> None:
        """Open the session and capture each length.

        Raises:
            EngineError: If ONNX Runtime cannot capture it.
        """
        super().__init__(bundle, variant, options)
        capture = partial(
            CudaGraphs, self._ort, self._session, self._new_run_options, index=self._index
        )
        self._captured = _run_in(self._workers, capture)

    def takes(self, rows: int, columns: int, outputs: Sequence[str]) -> bool:
        """Tell whether this is for a batch of so many texts of so many tokens."""
        return rows == 1 and self._captured.takes(columns, outputs)

    def _first_session(self) -> Any:
        options = ort_providers.cuda_options(self._index) | {"enable_cuda_graph": "1"}
        return self._opened([(CUDA, options)])

    def _new_run_options(self, graph: int = _NO_GRAPH) -> Any:
        options = super()._new_run_options()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def _computed(
        self,
        session: Any,  # noqa: ARG002  # that of the graphs
        outputs: Sequence[str],  # noqa: ARG002  # `takes` has seen to it
        feeds: Mapping[str, NDArray[Any]],
    ) -> list[NDArray[np.float32]]:
        return _run_in(self._workers, partial(self._captured.run, feeds["input_ids"]))

    def release_after_fork(self) -> None:
        """Leak the session and its graphs; see `bge_runtime.engines.Engine.release_after_fork`."""
        super().release_after_fork()
        leak(self._captured)


class _CudaGraph(NamedTuple):
    """What a CUDA graph reads from and writes to, on the GPU.

    Attributes:
        binding: Holds all of its inputs and its output.
        options: Say which graph it is.
        input_ids: The one input that differs between texts of one length.
        output: The vector.
    """

    binding: Any
    options: Any
    input_ids: Any
    output: Any


class CudaGraphs:
    """Runs of one short text each, whose kernels the GPU is given all at once.

    A short text keeps the GPU busy for less time than ONNX Runtime takes to launch hundreds of
    kernels one by one. As a CUDA graph they are launched by one call, always on the same
    memory: so only one thread may use it, which is the one that captured it, and nothing else
    may run in the session meanwhile.

    All lengths are captured at once: a capture fails if any thread of the process takes memory
    on the GPU meanwhile, which can be seen to while a model is opened, and not later.
    """

    def __init__(
        self, ort: Any, session: Any, run_options: Callable[[int], Any], *, index: int
    ) -> None:
        """Capture each length of a session; ``run_options`` makes those that name a graph.

        Raises:
            EngineError: If ONNX Runtime cannot capture it.
        """
        self._ort, self._session, self._index = ort, session, index
        self._graphs: dict[int, _CudaGraph] = {}
        for tokens in range(1, _CAPTURED_TOKENS + 1):
            captured = self._bound(tokens, run_options(tokens))
            try:
                # Runs three times: once for the memory, once to capture, once for the result.
                session.run_with_iobinding(captured.binding, captured.options)
            except Exception as error:  # one unrelated class for each status code
                raise EngineError(
                    f"ONNX Runtime {ort.__version__} cannot capture a text of {tokens} tokens as a "
                    f"CUDA graph: {error}. Open models one after the other, or leave cuda_graphs "
                    "out"
                ) from error
            self._graphs[tokens] = captured

    def takes(self, tokens: int, outputs: Sequence[str]) -> bool:
        """Tell whether a run of one text of so many tokens is one of these."""
        return tokens in self._graphs and list(outputs) == [SENTENCE_EMBEDDING]

    def run(self, input_ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Run one text. Shapes: ``(tokens,)``, and ``(1, dim)`` of the result."""
        captured = self._graphs[len(input_ids)]
        captured.input_ids.update_inplace(input_ids)
        self._session.run_with_iobinding(captured.binding, captured.options)
        return [captured.output.numpy()]

    def _bound(self, tokens: int, options: Any) -> _CudaGraph:
        value, binding = self._ort.OrtValue, self._session.io_binding()
        ids = np.zeros((1, tokens), dtype=np.int64)
        names = {given.name for given in self._session.get_inputs()}
        inputs = {
            name: value.ortvalue_from_numpy(array, "cuda", self._index)
            for name, array in graph_inputs(names, ids, np.ones_like(ids)).items()
        }
        for name, there in inputs.items():
            binding.bind_ortvalue_input(name, there)
        (width,) = (
            o.shape[-1] for o in self._session.get_outputs() if o.name == SENTENCE_EMBEDDING
        )
        output = value.ortvalue_from_shape_and_type((1, width), np.float32, "cuda", self._index)
        binding.bind_ortvalue_output(SENTENCE_EMBEDDING, output)
        return _CudaGraph(binding, options, inputs["input_ids"], output)
