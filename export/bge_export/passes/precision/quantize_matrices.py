"""Store matrices in 8 bits, with smoothed outliers in their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op

BLOCK = 128
"""Inputs of a matrix that share a scale, and that engines quantize together."""

_MIN_OUTPUTS = 16
"""Matrices with fewer outputs, such as the head of lexical weights, stay as they are."""

_LIMIT = 127


class QuantizeMatrices(ir.passes.InPlacePass):
    """Replace ``MatMul(x, W)`` by ``MatMul(x / s, DequantizeLinear(s W in 8 bits))``.

    The scales ``s`` move outliers of single channels from the input, which engines round to 8 bits
    at run time, into the matrix (SmoothQuant, arXiv:2211.10438, with alpha 0.5). A text's vector
    does not depend on the other texts of the batch: engines round a block of one token's channels
    together.

    Requires: opset 21, matrices as initializers.
    Changes: matrices whose inputs divide into blocks of at least 16.
    """

    def __init__(self, largest: Mapping[ir.Value, NDArray[np.float32]]) -> None:
        """Set the largest magnitude of each channel, by the value that is multiplied."""
        super().__init__()
        self.largest = largest

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        for x, nodes in matrices_by_input(model).items():
            matrices = [_read_matrix(node) for node in nodes]
            scales = compute_smoothing_scales(self.largest[x], matrices)
            builder = GraphBuilder()
            inverse = builder.constant(1 / scales, find_free_name(graph, f"{x.name}.smooth"))
            smooth = builder.op("Mul", [x, inverse])
            for node, matrix in zip(nodes, matrices, strict=True):
                name = str(node.inputs[1].name)  # type: ignore[union-attr]
                values, block_scales = quantize(matrix * scales[:, None])
                block = len(matrix) // len(block_scales)
                wide = builder.op(
                    "DequantizeLinear",
                    [
                        builder.constant(values, find_free_name(graph, f"{name}.int8")),
                        builder.constant(block_scales, find_free_name(graph, f"{name}.scale")),
                    ],
                    {"axis": 0, "block_size": block},
                )
                node.replace_input_with(0, smooth)
                node.replace_input_with(1, wide)
            builder.insert_before(nodes[0])
        return ir.passes.PassResult(model, modified=True)


def matrices_by_input(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Return the products with stored matrices that can be quantized, by their input."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        x, weight = (*node.inputs, None, None)[:2]
        if not is_op(node, "MatMul") or x is None or weight is None or weight.const_value is None:
            continue
        shape = weight.const_value.shape.numpy()
        if len(shape) == 2 and shape[1] >= _MIN_OUTPUTS and _choose_block(shape[0]) is not None:
            found.setdefault(x, []).append(node)
    return found


def compute_smoothing_scales(
    largest: NDArray[np.float32], matrices: list[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Balance the magnitude of each channel between the input and the matrices.

    Args:
        largest: Largest magnitude of each channel in the input. Shape: ``(inputs,)``.
        matrices: Matrices that multiply this input. Shape: ``(inputs, outputs)`` each.

    Returns:
        Factors for the rows of the matrices, with a geometric mean of 1. Shape: ``(inputs,)``.
    """
    weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    small = np.float32(1e-5)
    scales = np.sqrt(np.maximum(largest, small) / np.maximum(weights, small))
    balanced: NDArray[np.float32] = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
    return balanced


def quantize(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to 8 bits, with one scale for each block of inputs and each output.

    Args:
        matrix: Shape: ``(inputs, outputs)``.

    Returns:
        Whole numbers from -127 to 127, shape ``(inputs, outputs)``, and their scales, shape
        ``(inputs / block, outputs)``.
    """
    block = _choose_block(len(matrix))
    assert block is not None
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    peaks = np.abs(blocks).max(axis=1)
    scales = np.where(peaks > 0, peaks / np.float32(_LIMIT), np.float32(1))
    whole = np.rint(blocks / scales[:, None]).clip(-_LIMIT, _LIMIT).astype(np.int8)
    return whole.reshape(matrix.shape), scales.astype(np.float32)


def _choose_block(inputs: int) -> int | None:
    return next((block for block in _blocks() if inputs % block == 0), None)


def _blocks() -> Iterator[int]:
    block = BLOCK
    while block >= 16:  # the smallest that ONNX Runtime's kernels support
        yield block
        block //= 2


def _read_matrix(node: ir.Node) -> NDArray[Any]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return weight.const_value.numpy().astype(np.float32, copy=False)
