"""Run texts through a graph to measure what its matrices are multiplied with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.passes import matrices_by_input
from bge_runtime.engines import OrtCpuEngine, graph_inputs

_MAX_INSIDE = 1 << 26
"""Bytes of weights that a file of the graph may hold; Protocol Buffers end at 2 GB."""


def mean_inputs(
    model: ir.Model, token_ids: Sequence[NDArray[np.int64]], *, folder: Path
) -> dict[ir.Value, NDArray[np.float32]]:
    """Run texts through a graph and return the mean of its matrices' inputs, for each channel.

    Args:
        model: The graph; weights in files lie in ``folder``.
        token_ids: Tokens of each text.
        folder: Folder in which the graph is written for the run.

    Returns:
        Means over all tokens, by the value that is multiplied. Shape: ``(channels,)`` each.
    """
    watched = list(matrices_by_input(model))
    sums, tokens = [np.zeros(())] * len(watched), [0] * len(watched)
    for arrays in run_texts(model, watched, token_ids, folder=folder):
        for number, array in enumerate(arrays):
            rows = array.reshape(-1, array.shape[-1])
            sums[number] = sums[number] + rows.sum(axis=0)
            tokens[number] += len(rows)
    return {
        value: (sums[number] / tokens[number]).astype(np.float32)
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
        outputs: Values to yield, outputs of the graph or others.
        token_ids: Tokens of each text.
        folder: Folder in which the graph is written for the run.

    Yields:
        The values for each text.
    """
    declared = model.graph.outputs
    kept = list(declared)
    # No value may be an output twice.
    declared.extend(value for value in outputs if value not in kept)
    try:
        session = open_session(model, folder=folder)
    finally:
        declared[:] = kept
    names = [value.name for value in outputs]
    inputs = {value.name for value in session.get_inputs()}
    for ids in token_ids:
        yield session.run(names, graph_inputs(inputs, ids[None], np.ones_like(ids[None])))


def open_session(model: ir.Model, *, folder: Path) -> Any:
    """Open a graph with ONNX Runtime on the CPU; nothing stays in ``folder``."""
    ort = OrtCpuEngine.load()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    in_memory = sum(
        tensor.nbytes for tensor in tensors if tensor and not isinstance(tensor, ir.ExternalTensor)
    )
    if in_memory > _MAX_INSIDE:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "model.onnx"
            ir.save(model, path, external_data="model.onnx_data")
            return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
        # Weights that are in a file already are found beside this one.
        ir.save(model, file.name)
        return ort.InferenceSession(file.name, providers=["CPUExecutionProvider"])
