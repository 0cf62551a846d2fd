"""Store matrices in 8 bits, with the outliers of what they multiply smoothed away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.graph_builder import GraphBuilder, is_op, unique_name

BLOCK = 128
"""Inputs of a matrix that share a scale, and that an engine quantises together."""

_MIN_OUTPUTS = 16
"""Narrower matrices, such as the head of lexical weights, are not worth it."""

_LIMIT = 127


class QuantizeMatrices(ir.passes.InPlacePass):
    """Replace ``MatMul(x, W)`` by ``MatMul(x / s, DequantizeLinear(s W in 8 bits))``.

    The scales ``s`` move the outliers of single channels from what is multiplied, which an
    engine rounds to 8 bits while it runs, into the matrix (SmoothQuant, arXiv:2211.10438, at
    its alpha of 0.5). A text's vector does not depend on its batch mates: what is rounded
    together is a block of one token's channels.

    Requires: opset 21, matrices as initializers.
    Changes: matrices with inputs that divide into blocks of at least 16.
    """

    def __init__(self, largest: Mapping[ir.Value, NDArray[np.float32]]) -> None:
        """Take the largest magnitude of each channel, by what is multiplied."""
        super().__init__()
        self.largest = largest

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        for x, nodes in matrices_by_input(model).items():
            matrices = [_matrix(node) for node in nodes]
            scales = smoothing_scales(self.largest[x], matrices)
            edit = GraphBuilder()
            inverse = edit.constant(1 / scales, unique_name(graph, f"{x.name}.smooth"))
            smooth = edit.op("Mul", [x, inverse])
            for node, matrix in zip(nodes, matrices, strict=True):
                name = str(node.inputs[1].name)  # type: ignore[union-attr]
                values, block_scales = quantise(matrix * scales[:, None])
                block = len(matrix) // len(block_scales)
                wide = edit.op(
                    "DequantizeLinear",
                    [
                        edit.constant(values, unique_name(graph, f"{name}.int8")),
                        edit.constant(block_scales, unique_name(graph, f"{name}.scale")),
                    ],
                    {"axis": 0, "block_size": block},
                )
                node.replace_input_with(0, smooth)
                node.replace_input_with(1, wide)
            edit.insert_before(nodes[0])
        return ir.passes.PassResult(model, modified=True)


def matrices_by_input(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Find the products with stored matrices that can be quantised, by what is multiplied."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        x, weight = (*node.inputs, None, None)[:2]
        if not is_op(node, "MatMul") or x is None or weight is None or weight.const_value is None:
            continue
        shape = weight.const_value.shape.numpy()
        if len(shape) == 2 and shape[1] >= _MIN_OUTPUTS and _block(shape[0]) is not None:
            found.setdefault(x, []).append(node)
    return found


def smoothing_scales(
    largest: NDArray[np.float32], matrices: list[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Balance each channel between what is multiplied and the matrices.

    Args:
        largest: Its largest magnitude in what is multiplied. Shape: ``(inputs,)``.
        matrices: Matrices that share it. Shape: ``(inputs, outputs)`` each.

    Returns:
        Factors for the rows of the matrices, with a geometric mean of 1. Shape: ``(inputs,)``.
    """
    weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    small = np.float32(1e-5)
    scales = np.sqrt(np.maximum(largest, small) / np.maximum(weights, small))
    balanced: NDArray[np.float32] = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
    return balanced


def quantise(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to 8 bits, with one scale for each block of inputs and output.

    Args:
        matrix: Shape: ``(inputs, outputs)``.

    Returns:
        Whole numbers from -127 to 127, shape ``(inputs, outputs)``, and their scales, shape
        ``(inputs / block, outputs)``.
    """
    block = _block(len(matrix))
    assert block is not None
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    peaks = np.abs(blocks).max(axis=1)
    scales = np.where(peaks > 0, peaks / np.float32(_LIMIT), np.float32(1))
    whole = np.rint(blocks / scales[:, None]).clip(-_LIMIT, _LIMIT).astype(np.int8)
    return whole.reshape(matrix.shape), scales.astype(np.float32)


def _block(inputs: int) -> int | None:
    return next((block for block in _blocks() if inputs % block == 0), None)


def _blocks() -> Iterator[int]:
    block = BLOCK
    while block >= 16:  # the least that ONNX Runtime's kernels take
        yield block
        block //= 2


def _matrix(node: ir.Node) -> NDArray[Any]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return weight.const_value.numpy().astype(np.float32, copy=False)
