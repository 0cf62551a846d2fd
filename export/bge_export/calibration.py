"""How large what an encoder's matrices multiply becomes, channel by channel."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.passes.quantize_matrices import matrices_by_input
from bge_runtime.engines.base import graph_inputs
from bge_runtime.engines.ort import OrtEngine


def largest_inputs(
    model: ir.Model, token_ids: Sequence[NDArray[np.int64]], *, folder: Path
) -> dict[ir.Value, NDArray[np.float32]]:
    """Run texts through a graph and watch what its matrices multiply.

    Args:
        model: The graph; weights in files lie in ``folder``.
        token_ids: Tokens of each text.
        folder: Where the graph can be written for the time of the run.

    Returns:
        The largest magnitude of each channel over all tokens, by what is multiplied.
        Shape: ``(channels,)`` each.
    """
    watched = list(matrices_by_input(model))
    outputs = model.graph.outputs
    kept = list(outputs)
    # Already an output, it would be one twice.
    outputs.extend(value for value in watched if value not in kept)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
            ir.save(model, file.name)
            ort = OrtEngine.load()
            session = ort.InferenceSession(file.name, providers=["CPUExecutionProvider"])
    finally:
        outputs[:] = kept
    names = [value.name for value in watched]
    inputs = {value.name for value in session.get_inputs()}
    peaks: list[NDArray[np.float32]] = []
    for ids in token_ids:
        rows = session.run(names, graph_inputs(inputs, ids[None], np.ones_like(ids[None])))
        found = [np.abs(array).reshape(-1, array.shape[-1]).max(axis=0) for array in rows]
        peaks = [np.maximum(*pair) for pair in zip(peaks or found, found, strict=True)]
    return dict(zip(watched, peaks, strict=True))
