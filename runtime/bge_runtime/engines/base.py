"""What an engine is: the interface, the options it is opened with, and what it reports."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING, Bundle, Variant
from bge_runtime.errors import InferenceError, OutOfMemoryError


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How to open an engine.

    Attributes:
        device: Device of the variant's kind, such as ``"cuda:1"``; None for the first one.
        threads: Threads to compute with; None for all that the process may use.
        outputs: Outputs of the graph that will be requested. Others can be requested as well,
            but an engine that compiles its graph then compiles it again.
        streams: Batches to compute in parallel with an equal share of the threads each. For
            OpenVINO; ONNX Runtime on a CPU divides its threads whenever several batches come.
        cuda_graph_variant: Variant that runs single short texts as CUDA graphs; see
            `bge_runtime.variants.select_cuda_graph_variant`. None for no CUDA graphs.
        force_uniform_length: Use a graph's branch for texts of one length wherever it can be
            used, for a parity check. Ignored by engines that always do, or have none.
        on_compile: Called right before long work in native code, during which other threads can
            run Python. Engines on a CPU call it, others do not.
    """

    device: str | None = None
    threads: int | None = None
    outputs: tuple[str, ...] = (SENTENCE_EMBEDDING,)
    streams: int = 1
    cuda_graph_variant: Variant | None = None
    force_uniform_length: bool = False
    on_compile: Callable[[], object] = lambda: None

    @property
    def device_index(self) -> int:
        """Number of the device among those of its kind."""
        return int((self.device or "").partition(":")[2] or 0)


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine runs and where, as the engine itself reports it once it is open.

    Attributes:
        engine: Name of the engine.
        version: Version of its package.
        device: Kind of device.
        precision: Precision of the graph.
        provider: The engine's own name for what executes the graph.
        variant: Name of the bundle's variant.
        threads: Threads it computes with.
        streams: Batches that it computes in parallel on a CPU, with one share of the threads each.
    """

    engine: str
    version: str
    device: str
    precision: str
    provider: str
    variant: str
    threads: int
    streams: int = 1

    def __str__(self) -> str:
        parallel = f", up to {self.streams} batches in parallel" if self.streams > 1 else ""
        return (
            f"{self.engine} {self.version} on {self.device} ({self.provider}), "
            f"{self.precision}, variant {self.variant}, {self.threads} threads{parallel}"
        )


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """Sizes of batches at which an engine is fastest.

    Attributes:
        tokens: Tokens of a batch, padding included.
        parallel_tokens: Tokens of each batch where ``EngineInfo.streams`` run in parallel.
        overhead_tokens: Cost of starting a batch, as a number of tokens to compute.
        concurrent_runs: Calls of `Engine.run` to have in progress at once.
    """

    tokens: int
    parallel_tokens: int
    overhead_tokens: int
    concurrent_runs: int = 1


class Engine(Protocol):
    """An open graph on one device.

    Attributes:
        info: What it runs and where.
        batches: Sizes of batches at which it is fastest.
        past_names: Inputs of a causal graph that take keys and values of a prefix, in
            order. Empty for an encoder.
        past_token_bytes: Size of one token of a prefix in all of these inputs.
    """

    info: EngineInfo
    batches: BatchLimits
    past_names: tuple[str, ...]
    past_token_bytes: int

    @property
    def cuda_graph_engine(self) -> Engine | None:
        """Engine to which this one passes single short texts, or None."""
        ...

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        *,
        past: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[NDArray[np.float32]]:
        """Run one batch. Any number of threads may call this at once.

        Args:
            input_ids: Token ids, padded on the right. Shape: ``(batch, sequence)``.
            attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
            outputs: Names of the outputs to compute.
            past: Keys and values of a prefix that all texts share, one array for each of
                ``past_names``; C-contiguous, and not copied. None for no prefix.
                Shape: ``(1, kv_heads, past, head_dim)`` each.

        Returns:
            The requested outputs in order, each with a row for each text. ``colbert_vecs`` may be
            an object array of unpadded arrays.

        Raises:
            InferenceError: If the engine fails.
        """
        ...

    def release_after_fork(self) -> None:
        """Drop the graph in a forked process without closing it.

        The threads behind the graph exist only in the parent, and closing it would wait for them.
        """
        ...


class EngineClass(Protocol):
    """What `bge_runtime.engines.registry` needs of an engine's class.

    Attributes:
        package: Name of the package that it imports.
        has_cuda_graphs: Whether it accepts ``EngineOptions.cuda_graph_variant``.
        accepts_streams: Whether it accepts ``EngineOptions.streams``. An engine that does not may
            still report ``EngineInfo.streams``: it divides its threads without being asked.
    """

    @property
    def package(self) -> str: ...  # noqa: D102

    @property
    def has_cuda_graphs(self) -> bool: ...  # noqa: D102

    @property
    def accepts_streams(self) -> bool: ...  # noqa: D102

    def __call__(self, bundle: Bundle, variant: Variant, options: EngineOptions) -> Engine:
        """Open a variant, and raise an error unless it runs where and how it was requested."""
        ...

    def load(self) -> Any:
        """Import the engine's package."""
        ...

    def unavailable_reason(self, precision: str) -> str | None:
        """Return why this machine cannot run a precision on the engine, or None if it can."""
        ...


def keep_forever(item: object) -> None:
    """Keep a reference to an object for as long as the process runs, so that it is never closed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


def inference_error(engine: str, input_ids: NDArray[np.int64], error: Exception) -> InferenceError:
    """Return the error for an engine that failed on a batch."""
    rows, columns = input_ids.shape
    return (OutOfMemoryError if is_out_of_memory(error) else InferenceError)(
        f"{engine} failed on a batch of {rows} texts of {columns} tokens: {error}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an engine failed because it ran out of memory."""
    return any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "failed to allocate memory",
    "is smaller than requested bytes",
    "out of memory",
    "cudaerrormemoryallocation",
    "cublas_status_alloc_failed",
    "bad allocation",
    "bad_alloc",
)
"""Parts of such messages of ONNX Runtime, CUDA, cuBLAS and C++, in lower case."""
