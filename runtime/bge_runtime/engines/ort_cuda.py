"""ONNX Runtime on an NVIDIA GPU. It has not run on one yet.

What is said here of ONNX Runtime's calls into CUDA was counted with version 1.31.1 and libraries
in the place of CUDA's that compute nothing (``make gpu-wheel``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import packed_inputs
from bge_runtime.engines.ort import OrtEngine, leak
from bge_runtime.engines.ort_providers import CUDA
from bge_runtime.errors import EngineError
from bge_runtime.manifest import SENTENCE_EMBEDDING, TOKEN_OFFSET, Variant

_BATCH_TOKENS = 16384
"""Tokens of a batch. Not measured on a GPU yet: at this number each matrix product of bge-base is
some 20 GFLOP, a fiftieth of a millisecond's work for the largest."""

_RUNS = 2
"""Batches that are under way at once: while one is computed, the next one is put together, and
the vectors of the last one are brought to unit length. PackedMultiHeadAttention waits for the GPU
once a layer, to see whether its input was right: the other batch fills that gap, too."""

_CAPTURED_TOKENS = 64
"""Longest text that is run as a CUDA graph: there are as many graphs as lengths."""

_NO_GRAPH = -1


class OrtCudaEngine(OrtEngine):
    """One session of ONNX Runtime's CUDA provider. See `bge_runtime.engines.Engine`."""

    provider: ClassVar[str] = CUDA
    device: ClassVar[str] = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        *,
        cuda_graphs: bool = False,
        **options: Any,
    ) -> None:
        """Open a session as `OrtEngine` does, which has the other options.

        With ``cuda_graphs`` a single text of up to 64 tokens is run as a CUDA graph, of which
        there is one for each length; one batch is under way at a time then.

        Raises:
            EngineError: If CUDA graphs are asked for, and the variant's graph is not packed or
                cannot be captured.
        """
        self._captured: CapturedRuns | None = None
        self._cuda_graphs = cuda_graphs
        super().__init__(bundle, variant, **options)
        if cuda_graphs and not self._packed:
            raise EngineError(
                f"requested cuda_graphs, but variant {variant.name!r} cannot be captured as one: "
                "this version does that for encoders on ONNX Runtime (--target cuda). Leave it out"
            )
        # ONNX Runtime makes a stream and handles of cuBLAS for every thread that ever calls it:
        # here it is called by the same few.
        self.parallel_runs = 1 if cuda_graphs else _RUNS
        self._workers = ThreadPoolExecutor(self.parallel_runs, thread_name_prefix="bge-cuda")
        self.batch_tokens = _BATCH_TOKENS
        # A packed batch has no padding to pay for; another one an eighth.
        self.batch_overhead_tokens = _BATCH_TOKENS // (1 if self._packed else 8)
        if cuda_graphs:
            capturing = self._workers.submit(
                CapturedRuns, self._ort, self._session, self._new_run_options, index=self._index
            )
            self._captured = capturing.result()

    def _first_session(self) -> Any:
        options = ort_providers.cuda_options(self._index)
        if self._cuda_graphs:
            options["enable_cuda_graph"] = "1"
        return self._opened([(CUDA, options)])

    def _new_run_options(self, graph: int = _NO_GRAPH) -> Any:
        options = super()._new_run_options()
        if self._cuda_graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def _computed(
        self, session: Any, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        if self._captured is not None and self._captured.takes(outputs, feeds):
            return self._workers.submit(self._captured.run, feeds["input_ids"]).result()
        submitted = self._workers.submit(session.run, list(outputs), feeds, self._run_options)
        results: list[NDArray[np.float32]] = submitted.result()
        return results

    def abandon(self) -> None:
        """Leak the session and what belongs to it; see `bge_runtime.engines.Engine.abandon`."""
        super().abandon()
        leak(self._captured)


class _Captured(NamedTuple):
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


class CapturedRuns:
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
        self._graphs: dict[int, _Captured] = {}
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

    def takes(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> bool:
        """Tell whether a run is one of these."""
        return (
            len(feeds[TOKEN_OFFSET]) == 1
            and len(feeds["input_ids"]) in self._graphs
            and list(outputs) == [SENTENCE_EMBEDDING]
        )

    def run(self, input_ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Run one text. Shapes: ``(tokens,)``, and ``(1, dim)`` of the result."""
        captured = self._graphs[len(input_ids)]
        captured.input_ids.update_inplace(input_ids)
        self._session.run_with_iobinding(captured.binding, captured.options)
        return [captured.output.numpy()]

    def _bound(self, tokens: int, options: Any) -> _Captured:
        value, binding = self._ort.OrtValue, self._session.io_binding()
        ids = np.zeros((1, tokens), dtype=np.int64)
        inputs = {
            name: value.ortvalue_from_numpy(array, "cuda", self._index)
            for name, array in packed_inputs(ids, np.ones_like(ids)).items()
        }
        for name, there in inputs.items():
            binding.bind_ortvalue_input(name, there)
        (width,) = (
            o.shape[-1] for o in self._session.get_outputs() if o.name == SENTENCE_EMBEDDING
        )
        output = value.ortvalue_from_shape_and_type((1, width), np.float32, "cuda", self._index)
        binding.bind_ortvalue_output(SENTENCE_EMBEDDING, output)
        return _Captured(binding, options, inputs["input_ids"], output)
