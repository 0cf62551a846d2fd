"""Run texts through a graph to measure what its matrices are multiplied with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.passes import matrices_by_input
from bge_runtime.engines import OrtCpuEngine, graph_inputs


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Statistics of the input channels of a matrix product, over all tokens of some texts.

    Attributes:
        largest: Largest magnitude of each channel. Shape: ``(channels,)``.
        mean: Mean of each channel. Shape: ``(channels,)``.
    """

    largest: NDArray[np.float32]
    mean: NDArray[np.float32]


def watch_inputs(
    model: ir.Model, token_ids: Sequence[NDArray[np.int64]], *, folder: Path
) -> dict[ir.Value, Channels]:
    """Run texts through a graph and return statistics of its matrices' inputs.

    Args:
        model: The graph; weights in files lie in ``folder``.
        token_ids: Tokens of each text.
        folder: Folder in which the graph is written for the run.

    Returns:
        Statistics by the value that is multiplied.
    """
    watched = list(matrices_by_input(model))
    outputs = model.graph.outputs
    kept = list(outputs)
    # No value may be an output twice.
    outputs.extend(value for value in watched if value not in kept)
    largest = [np.zeros(())] * len(watched)
    sums, tokens = list(largest), [0] * len(watched)
    try:
        for arrays in run_texts(model, watched, token_ids, folder=folder):
            for number, array in enumerate(arrays):
                rows = array.reshape(-1, array.shape[-1])
                largest[number] = np.maximum(largest[number], np.abs(rows).max(axis=0))
                sums[number] = sums[number] + rows.sum(axis=0)
                tokens[number] += len(rows)
    finally:
        outputs[:] = kept
    return {
        value: Channels(
            largest=largest[number].astype(np.float32),
            mean=(sums[number] / tokens[number]).astype(np.float32),
        )
        for number, value in enumerate(watched)
    }


def run_texts(
    model: ir.Model,
    outputs: Sequence[ir.Value],
    token_ids: Sequence[NDArray[np.int64]],
    *,
    folder: Path,
) -> Iterator[list[NDArray[np.float32]]]:
    """Run texts through a graph with ONNX Runtime, one at a time.

    Args:
        model: The graph; weights in files lie in ``folder``.
        outputs: Outputs to yield.
        token_ids: Tokens of each text.
        folder: Folder in which the graph is written for the run.

    Yields:
        The outputs of each text.
    """
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
        ir.save(model, file.name)
        ort = OrtCpuEngine.load()
        session = ort.InferenceSession(file.name, providers=["CPUExecutionProvider"])
    names = [value.name for value in outputs]
    inputs = {value.name for value in session.get_inputs()}
    for ids in token_ids:
        yield session.run(names, graph_inputs(inputs, ids[None], np.ones_like(ids[None])))
