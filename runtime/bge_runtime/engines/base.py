"""What every engine is."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import (
    COLBERT_VECS,
    CUMULATIVE_LENGTHS,
    HEAD_OUTPUTS,
    SENTENCE_EMBEDDING,
    TOKEN_OFFSET,
    UNIFORM_BATCH,
    UNIFORM_LENGTH,
    Variant,
)
from bge_runtime.errors import InferenceError, OutOfMemoryError


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What is in force, as the engine itself reports it after opening.

    Attributes:
        engine: Name of the engine.
        version: Version of its package.
        device: Kind of device it runs on.
        precision: Arithmetic of the graph it runs.
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
    """

    device: str | None = None
    threads: int | None = None
    outputs: tuple[str, ...] = (SENTENCE_EMBEDDING,)
    streams: int = 1
    cuda_graph_variant: Variant | None = None
    force_uniform_length: bool = False

    @property
    def device_index(self) -> int:
        """Number of the device among those of its kind."""
        return int((self.device or "").partition(":")[2] or 0)


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


class PastInputs:
    """The inputs of a causal graph that take keys and values of a shared prefix.

    Attributes:
        names: Their names, in the graph's order. None for an encoder.
        token_bytes: What one token takes in all of them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Take the names, each with its heads and their width."""
        self.names = tuple(shapes)
        self.token_bytes = sum(heads * width * 4 for heads, width in shapes.values())
        self._empty = [
            np.empty((1, heads, 0, width), dtype=np.float32) for heads, width in shapes.values()
        ]

    def feeds(self, past: Sequence[NDArray[np.float32]] | None) -> dict[str, NDArray[np.float32]]:
        """Name the arrays of a past; without one they have no tokens.

        Raises:
            ValueError: If there are more arrays than inputs, or fewer.
        """
        return dict(zip(self.names, self._empty if past is None else past, strict=True))


def graph_inputs(
    names: Container[str], input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Name a batch's arrays as a graph wants them.

    Args:
        names: Names of the graph's inputs. A graph with token types gets all zeros: an
            embedder reads one text at a time.
        input_ids: Token ids. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
    """
    if CUMULATIVE_LENGTHS in names:
        packed = packed_inputs(input_ids, attention_mask)
        if UNIFORM_BATCH in names:
            packed[UNIFORM_BATCH] = packed.pop(TOKEN_OFFSET)
        if UNIFORM_LENGTH in names:
            packed[UNIFORM_LENGTH] = np.array(attention_mask.all())
        return packed
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "token_type_ids" in names:
        inputs["token_type_ids"] = np.zeros_like(input_ids)
    return inputs


def packed_inputs(
    input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Name a batch's arrays as a packed graph wants them, padding left out.

    Args:
        input_ids: Token ids. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
    """
    rows, columns = input_ids.shape
    kept = attention_mask.ravel() != 0
    places = np.arange(rows * columns, dtype=np.int32)
    lengths = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(attention_mask.sum(axis=1), out=lengths[1:])
    return {
        "input_ids": input_ids.ravel()[kept],
        "position_ids": (places[kept] % columns).astype(np.int64),
        CUMULATIVE_LENGTHS: lengths,
        TOKEN_OFFSET: np.concatenate([places[kept], places[~kept]]).reshape(rows, columns),
    }


def split_by_text(
    output: str, values: NDArray[np.float32], attention_mask: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Give what a graph without padding gave for all tokens by text, as other graphs do.

    Args:
        output: Name of the output.
        values: One row a text, or a token. Shape: ``(texts, …)`` or ``(tokens, …)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.

    Returns:
        One row a text: a number for each token with zeros at padding, or, not to copy 64 MB a
        batch of M3, an array of arrays, which are views of ``values`` and have no padding.
    """
    if output == COLBERT_VECS:
        ends = np.cumsum(attention_mask.sum(axis=1))
        rows = np.empty(len(ends), dtype=object)
        for row, part in enumerate(np.split(values, ends[:-1])):
            rows[row] = part[1:]
        return rows
    if output not in HEAD_OUTPUTS:
        return values
    padded = np.zeros(attention_mask.shape, dtype=values.dtype)
    padded[attention_mask != 0] = values
    return padded


def inference_error(engine: str, input_ids: NDArray[np.int64], error: Exception) -> InferenceError:
    """Say which engine failed on a batch of what size."""
    rows, columns = input_ids.shape
    return (OutOfMemoryError if is_out_of_memory(error) else InferenceError)(
        f"{engine} failed on a batch of {rows} texts of {columns} tokens: {error}"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an engine's error says that its memory is too short."""
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
"""What ONNX Runtime's arenas, CUDA, cuBLAS and C++ say of it, in lower case."""


class Engine(Protocol):
    """An opened graph.

    Attributes:
        info: What is in force.
        batches: Sizes of batches at which it is fastest.
        past_names: Inputs of a causal graph that take keys and values of a prefix, in
            order. None for an encoder.
        past_token_bytes: What one token of a prefix takes in all of them.
    """

    info: EngineInfo
    batches: BatchLimits
    past_names: tuple[str, ...]
    past_token_bytes: int

    @property
    def cuda_graph_engine(self) -> Engine | None:
        """Another engine that it hands some batches to; None for nearly all."""
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
            past: Keys and values of what stands before each text, one array for each of
                ``past_names``; C-contiguous, and not copied. None for nothing.
                Shape: ``(1, kv_heads, past, head_dim)`` each.

        Returns:
            The outputs in the order asked for, each with a row for each text. Those of
            ``colbert_vecs`` may be an array of arrays: then their rows have no padding.

        Raises:
            InferenceError: If the engine fails.
        """
        ...

    def release_after_fork(self) -> None:
        """Let go of the graph without touching it.

        For a process that was forked: the threads behind the graph did not come
        along, and closing it would wait for them.
        """
        ...
