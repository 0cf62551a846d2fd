"""Single short texts as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING, Bundle, Variant
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import BatchLimits, EngineOptions, keep_forever
from bge_runtime.engines.batch_arrays import graph_inputs
from bge_runtime.engines.cuda_threads import CudaThreads
from bge_runtime.engines.ort_providers import CUDA_PROVIDER
from bge_runtime.engines.ort_session import Feeds, OrtSession
from bge_runtime.errors import EngineError
from bge_runtime.system import default_threads

_MOST_TOKENS = 64
"""Longest text that is run as a CUDA graph: there is one graph for each length."""


class CudaGraphEngine:
    """A session that runs single short texts, each as a CUDA graph.

    `bge_runtime.engines.ort_cuda.OrtCudaEngine` opens it beside its own session, and passes it
    the batches that it accepts.
    """

    cuda_graph_engine: ClassVar[None] = None

    def __init__(self, bundle: Bundle, variant: Variant, options: EngineOptions) -> None:
        """Open the session and capture a CUDA graph for each length.

        Raises:
            EngineError: If ONNX Runtime cannot capture one.
        """
        ort = ort_providers.load_for(variant)
        index = options.device_index
        threads = options.threads or default_threads()
        cuda = (CUDA_PROVIDER, ort_providers.cuda_options(index) | {"enable_cuda_graph": "1"})
        graph = bundle.graph(variant.graph)
        self._session = OrtSession.open(ort, bundle, graph, [cuda], threads=threads)
        # A graph runs in the thread that captured it.
        self._threads = CudaThreads(1)

        def run_options(number: int) -> Any:
            chosen = ort.RunOptions()
            chosen.add_run_config_entry("gpu_graph_id", str(number))
            return chosen

        capture = partial(CudaGraphs, ort, self._session.session, run_options, index=index)
        self._graphs = self._threads.run(capture)
        self.batches = BatchLimits(
            tokens=_MOST_TOKENS, parallel_tokens=_MOST_TOKENS, overhead_tokens=0
        )
        self.past_names = self._session.past.names
        self.past_token_bytes = self._session.past.token_bytes
        self.info = self._session.info(variant, version=ort.__version__, threads=threads)

    def accepts(self, rows: int, columns: int, outputs: Sequence[str]) -> bool:
        """Return whether there is a CUDA graph for a batch of this shape and these outputs."""
        return rows == 1 and self._graphs.accepts(columns, outputs)

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run a batch that it accepts; see `bge_runtime.engines.Engine.run`."""
        return self._session.run(self._compute, input_ids, attention_mask, outputs, past)

    def _compute(
        self,
        session: Any,  # noqa: ARG002  # the one that the graphs were captured in
        outputs: Sequence[str],  # noqa: ARG002  # the one that `accepts` checked
        feeds: Feeds,
    ) -> list[NDArray[np.float32]]:
        return self._threads.run(partial(self._graphs.run, feeds["input_ids"]))

    def release_after_fork(self) -> None:
        """Drop the session and its graphs without closing them."""
        self._session.release_after_fork()
        keep_forever(self._graphs)


class _CudaGraph(NamedTuple):
    """Memory on the GPU that a CUDA graph reads from and writes to.

    Attributes:
        binding: Binds all inputs and the output to that memory.
        options: Run options that name the graph.
        input_ids: The one input that differs between texts of one length.
        output: The vector.
    """

    binding: Any
    options: Any
    input_ids: Any
    output: Any


class CudaGraphs:
    """CUDA graphs of a session, one for each length of a text up to 64 tokens.

    A short text keeps the GPU busy for less time than ONNX Runtime takes to launch hundreds of
    kernels one by one. A CUDA graph launches them with one call, always on the same memory: so
    only one thread may use it, which is the one that captured it, and nothing else may run in
    the session meanwhile.

    All lengths are captured at once. A capture fails if any thread of the process allocates memory
    on the GPU meanwhile, which can be avoided while a model is opened, and not later.
    """

    def __init__(
        self, ort: Any, session: Any, run_options: Callable[[int], Any], *, index: int
    ) -> None:
        """Capture a graph for each length.

        Args:
            ort: The package.
            session: An ``InferenceSession`` with CUDA graphs enabled.
            run_options: Creates the run options that name a graph by its number.
            index: Number of the GPU.

        Raises:
            EngineError: If ONNX Runtime cannot capture one.
        """
        self._ort, self._session, self._index = ort, session, index
        self._graphs: dict[int, _CudaGraph] = {}
        for tokens in range(1, _MOST_TOKENS + 1):
            graph = self._bind(tokens, run_options(tokens))
            try:
                # Runs three times: to allocate memory, to capture, and for the result.
                session.run_with_iobinding(graph.binding, graph.options)
            except Exception as error:  # one unrelated class for each status code
                raise EngineError(
                    f"ONNX Runtime {ort.__version__} cannot capture a text of {tokens} tokens as a "
                    f"CUDA graph: {error}. Open models one after the other, or leave cuda_graphs "
                    "out"
                ) from error
            self._graphs[tokens] = graph

    def accepts(self, tokens: int, outputs: Sequence[str]) -> bool:
        """Return whether there is a graph for a text of this length and these outputs."""
        return tokens in self._graphs and list(outputs) == [SENTENCE_EMBEDDING]

    def run(self, input_ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Run one text. Shapes: ``(tokens,)``, and ``(1, dim)`` of the result."""
        graph = self._graphs[len(input_ids)]
        graph.input_ids.update_inplace(input_ids)
        self._session.run_with_iobinding(graph.binding, graph.options)
        return [graph.output.numpy()]

    def _bind(self, tokens: int, options: Any) -> _CudaGraph:
        """Allocate the memory of a graph on the GPU and bind inputs and output to it."""
        value, binding = self._ort.OrtValue, self._session.io_binding()
        ids = np.zeros((1, tokens), dtype=np.int64)
        names = {declared.name for declared in self._session.get_inputs()}
        inputs = {
            name: value.ortvalue_from_numpy(array, "cuda", self._index)
            for name, array in graph_inputs(names, ids, np.ones_like(ids)).items()
        }
        for name, on_gpu in inputs.items():
            binding.bind_ortvalue_input(name, on_gpu)
        (width,) = (
            o.shape[-1] for o in self._session.get_outputs() if o.name == SENTENCE_EMBEDDING
        )
        output = value.ortvalue_from_shape_and_type((1, width), np.float32, "cuda", self._index)
        binding.bind_ortvalue_output(SENTENCE_EMBEDDING, output)
        return _CudaGraph(binding, options, inputs["input_ids"], output)
