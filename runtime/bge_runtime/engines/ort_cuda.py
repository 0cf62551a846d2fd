"""ONNX Runtime on an NVIDIA GPU.

What is said here of ONNX Runtime's calls into CUDA was counted with version 1.31.1 and libraries
in the place of CUDA's that compute nothing (``make gpu-wheel``); times are an H100's with
bge-large.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle
from bge_runtime.engines import ort_providers
from bge_runtime.engines.base import graph_inputs
from bge_runtime.engines.ort import OrtEngine, leak
from bge_runtime.engines.ort_providers import CUDA
from bge_runtime.errors import BgeError, EngineError
from bge_runtime.manifest import CUMULATIVE_LENGTHS, EVEN_BATCH, SENTENCE_EMBEDDING, Variant

_BATCH_TOKENS = 32768
"""Tokens of a batch. With 16,384 mixed and natural lengths were 0 to 4 % slower, with 65,536 1 to
2 % faster, for twice the memory: 268 MB for the widest tensor of bge-large at this number."""

_RUNS = 2
"""Batches that are under way at once: while one is computed, the next one is put together, and
the vectors of the last one are brought to unit length. PackedMultiHeadAttention waits for the GPU
once a layer, to see whether its input was right: the other batch fills that gap, too."""

_CAPTURED_TOKENS = 64
"""Longest text that is run as a CUDA graph: there are as many graphs as lengths."""

_EVEN_TOKENS = 8192
"""Tokens of a batch from which on cuDNN's attention wins: 8 % with 16,384, nothing with 4,096."""

_EVEN_RUNS = 16
"""Batches of one shape before that takes over: cuDNN makes a plan for each shape and thread, which
takes some 50 ms, and saves 3 of 48 in a run of 32,768 tokens. As in renting skis, one that is
never used again costs no more than what came before it might have saved."""

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

        A packed graph may have a companion for texts of one length. Large batches of them go
        there once their shape has come up often, with a second copy of the weights on the GPU;
        and with ``cuda_graphs`` a single text of up to 64 tokens, which is run as a CUDA graph, one
        for each length.

        Raises:
            EngineError: If CUDA graphs are asked for, and the variant's graph has no such
                companion or that cannot be captured.
        """
        self.captured: CapturedRuns | None = None
        self._even_engine: OrtCudaEngine | None = None
        # Of the companion itself, whose session has the CUDA graphs.
        self._captures = cuda_graphs and EVEN_BATCH in bundle.graph(variant.graph).inputs
        super().__init__(bundle, variant, **options)
        self._open_even = self._even_opener(variant, options) if not self._even else None
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._choosing = threading.Lock()
        if cuda_graphs and not self._captures:
            if self._open_even is None:
                raise EngineError(
                    f"requested cuda_graphs, but variant {variant.name!r} cannot be captured as "
                    "one: this version does that for encoders on ONNX Runtime (--target cuda). "
                    "Leave it out, or export such a bundle again"
                )
            self._even_engine = self._open_even(cuda_graphs=True)
        # ONNX Runtime makes a stream and handles of cuBLAS for every thread that ever calls it:
        # here it is called by the same few.
        self.parallel_runs = 1 if self._captures else _RUNS
        self._workers = ThreadPoolExecutor(self.parallel_runs, thread_name_prefix="bge-cuda")
        self.batch_tokens = _BATCH_TOKENS
        # A packed batch has no padding to pay for; another one an eighth.
        self.batch_overhead_tokens = _BATCH_TOKENS // (1 if self._packed else 8)
        if self._captures:
            capturing = self._workers.submit(
                CapturedRuns, self._ort, self._session, self._new_run_options, index=self._index
            )
            self.captured = capturing.result()

    def _even_opener(
        self, variant: Variant, options: dict[str, Any]
    ) -> Callable[..., OrtCudaEngine] | None:
        """Give what opens the companion for texts of one length, if there is one."""
        bundle, precision = self._bundle, variant.precision
        for other in bundle.manifest.variants:
            even = EVEN_BATCH in bundle.graph(other.graph).inputs
            if self._packed and even and (other.engine, other.precision) == (
                variant.engine, precision,
            ):  # fmt: skip
                return functools.partial(OrtCudaEngine, bundle, other, **options)
        return None

    def _first_session(self) -> Any:
        options = ort_providers.cuda_options(self._index)
        if self._captures:
            options["enable_cuda_graph"] = "1"
        return self._opened([(CUDA, options)])

    def _new_run_options(self, graph: int = _NO_GRAPH) -> Any:
        options = super()._new_run_options()
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch; see `bge_runtime.engines.Engine.run`."""
        even = self._even_engine_for(attention_mask, outputs)
        if even is not None:
            return even.run(input_ids, attention_mask, outputs)
        return super().run(input_ids, attention_mask, outputs, past=past)

    def _even_engine_for(
        self, attention_mask: NDArray[np.int64], outputs: Sequence[str]
    ) -> OrtCudaEngine | None:
        rows, columns = attention_mask.shape
        captured = self._even_engine.captured if self._even_engine is not None else None
        if captured is not None and rows == 1 and captured.takes(columns, outputs):
            return self._even_engine
        if self._open_even is None or rows * columns < _EVEN_TOKENS or not attention_mask.all():
            return None
        with self._choosing:
            self._seen[rows, columns] += 1
            if self._seen[rows, columns] <= _EVEN_RUNS:
                return None
            if self._even_engine is None:
                try:
                    opened = self._open_even()
                    # What it lacks beside memory, such as cuDNN, shows when it runs.
                    one = np.ones((1, 1), dtype=np.int64)
                    opened.run(one, one, outputs)
                    self._even_engine = opened
                except BgeError as error:
                    self._open_even = None
                    warnings.warn(
                        "batches of texts of one length would be faster with a second copy of "
                        f"the weights on the GPU, which cannot be opened: {error}. They are run "
                        "like all others",
                        stacklevel=2,
                    )
            return self._even_engine

    def _computed(
        self, session: Any, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        alone = len(feeds.get(CUMULATIVE_LENGTHS, ())) == 2
        if alone and self.captured and self.captured.takes(len(feeds["input_ids"]), outputs):
            return self._workers.submit(self.captured.run, feeds["input_ids"]).result()
        submitted = self._workers.submit(session.run, list(outputs), feeds, self._run_options)
        results: list[NDArray[np.float32]] = submitted.result()
        return results

    def abandon(self) -> None:
        """Leak the session and what belongs to it; see `bge_runtime.engines.Engine.abandon`."""
        super().abandon()
        leak(self.captured)
        if self._even_engine is not None:
            self._even_engine.abandon()


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

    def takes(self, tokens: int, outputs: Sequence[str]) -> bool:
        """Tell whether a run of one text of so many tokens is one of these."""
        return tokens in self._graphs and list(outputs) == [SENTENCE_EMBEDDING]

    def run(self, input_ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Run one text. Shapes: ``(tokens,)``, and ``(1, dim)`` of the result."""
        captured = self._graphs[len(input_ids)]
        captured.input_ids.update_inplace(input_ids)
        self._session.run_with_iobinding(captured.binding, captured.options)
        return [captured.output.numpy()]

    def _bound(self, tokens: int, options: Any) -> _Captured:
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
        return _Captured(binding, options, inputs["input_ids"], output)
