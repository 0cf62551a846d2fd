"""Store matrices and word embeddings in 8 bits, with static or dynamic scales of activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.graph_builder import (
    GraphBuilder,
    find_free_name,
    has_matrix,
    is_op,
    read_constant,
)

BLOCK = 128
"""Inputs of a matrix that share a scale, and that engines quantize together at run time."""

LIMIT = 127
"""Largest magnitude of a weight in 8 bits."""

_MIN_OUTPUTS = 16
"""Matrices with fewer outputs, such as the head of lexical weights, stay as they are."""

_MIN_ROWS = 1024
"""Tables with fewer rows, such as those of positions in BERT, are small and stay as they are."""


@dataclass(frozen=True, kw_only=True)
class QuantizedMatrix:
    """A matrix in 8 bits.

    Attributes:
        values: Whole numbers from -127 to 127. Shape: ``(inputs, outputs)``.
        scales: Scales of blocks of inputs. Shape: ``(blocks, outputs)``.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class QuantizedInput:
    """How the products of one value with its matrices are computed in 8 bits.

    Attributes:
        smoothing: Divisors of the channels, which the matrices are multiplied by.
            Shape: ``(inputs,)``.
        matrices: The matrices, in the order of their nodes.
        scale: Step of the value's whole numbers from 0 to 255; None to choose steps at run time,
            one for each block of a token's channels.
        zero_point: Whole number that stands for 0.
    """

    smoothing: NDArray[np.float32]
    matrices: Sequence[QuantizedMatrix]
    scale: float | None = None
    zero_point: int = 0

    def round(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a value, divided by ``smoothing``, with the rounding of an engine.

        Args:
            x: The value. Shape: ``(..., inputs)``.
        """
        smooth = x / self.smoothing
        if self.scale is None:
            blocks = smooth.reshape(*x.shape[:-1], -1, block_of(x.shape[-1]))
            steps = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(LIMIT)
            whole = np.rint(blocks / np.where(steps > 0, steps, 1))
            rounded: NDArray[np.float32] = (whole * steps).reshape(x.shape)
            return rounded
        step, zero = np.float32(self.scale), self.zero_point
        whole = np.rint(smooth / step).clip(-zero, 255 - zero)
        static: NDArray[np.float32] = (whole * step).astype(np.float32)
        return static


class QuantizeMatrices(ir.passes.InPlacePass):
    """Replace products with matrices by products in 8 bits.

    ``MatMul(x, W)`` becomes ``MatMul(x / s, DequantizeLinear(s W in 8 bits))``, where the divisors
    ``s`` move outliers of single channels from the value into the matrix (SmoothQuant,
    arXiv:2211.10438). With a static scale ``x / s`` is rounded in the graph; otherwise engines
    round it, a block of one token's channels together. In both ways a text's vector does not
    depend on the other texts of its batch.

    Requires: opset 21, matrices as initializers.
    Changes: the products of the given values.
    """

    def __init__(self, inputs: Mapping[ir.Value, QuantizedInput]) -> None:
        """Set how the products of each value are computed."""
        super().__init__()
        self.inputs = inputs

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        nodes = matrices_by_input(model)
        for x, form in self.inputs.items():
            _replace_products(x, nodes[x], form)
        return ir.passes.PassResult(model, modified=bool(self.inputs))


class QuantizeEmbeddings(ir.passes.InPlacePass):
    """Store tables of embeddings in 8 bits, with a scale for each row.

    Requires: tables as initializers.
    Changes: each ``Gather`` from the rows of a large table, which becomes
    ``Cast(Gather(values)) * Gather(scales)``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        found = [node for node in model.graph if _reads_large_table(node)]
        for node in found:
            table, rows = read_constant(node.inputs[0]), node.inputs[1]
            assert table is not None
            builder, name = GraphBuilder(), str(node.inputs[0].name)  # type: ignore[union-attr]
            values, scales = quantize(table.T, block=table.shape[1])
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            whole = builder.op(
                "Gather", [builder.constant(values.T, find_free_name(graph, f"{name}.int8")), rows]
            )
            scale = builder.op(
                "Gather",
                [builder.constant(scales.T, find_free_name(graph, f"{name}.scale")), rows],
            )
            wide = builder.op("Cast", [whole], {"to": ir.DataType.FLOAT})
            product = builder.op("Mul", [wide, scale])
            builder.insert_before(node)
            ir.convenience.replace_all_uses_with(node.outputs[0], product)
            graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(found))


def matrices_by_input(model: ir.Model) -> dict[ir.Value, list[ir.Node]]:
    """Return the products with stored matrices that can be quantized, by their input."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        x = node.inputs[0] if has_matrix(node) else None
        if x is None:
            continue
        inputs, outputs = node.inputs[1].const_value.shape.numpy()  # type: ignore[union-attr]
        if outputs >= _MIN_OUTPUTS and any(inputs % block == 0 for block in _blocks()):
            found.setdefault(x, []).append(node)
    return found


def quantize(
    matrix: NDArray[np.float32], *, block: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to 8 bits, with one scale for each block of inputs and each output.

    Args:
        matrix: Shape: ``(inputs, outputs)``.
        block: Inputs that share a scale.

    Returns:
        Whole numbers from -127 to 127, shape ``(inputs, outputs)``, and their scales, shape
        ``(inputs / block, outputs)``.
    """
    scales = choose_scales(matrix, block=block)
    whole = np.rint(matrix / np.repeat(scales, block, axis=0)).clip(-LIMIT, LIMIT)
    return whole.astype(np.int8), scales


def choose_scales(matrix: NDArray[np.float32], *, block: int) -> NDArray[np.float32]:
    """Return the scales with which a block's largest weight becomes 127.

    Args:
        matrix: Shape: ``(inputs, outputs)``.
        block: Inputs that share a scale.

    Returns:
        Scales. Shape: ``(inputs / block, outputs)``.
    """
    peaks = np.abs(matrix).reshape(-1, block, matrix.shape[1]).max(axis=1)
    return np.where(peaks > 0, peaks / np.float32(LIMIT), np.float32(1)).astype(np.float32)


def block_of(inputs: int) -> int:
    """Return how many inputs of a matrix share a scale that is chosen at run time."""
    return next(block for block in _blocks() if inputs % block == 0)


def _blocks() -> Iterator[int]:
    block = BLOCK
    while block >= 16:  # the smallest that ONNX Runtime's kernels support
        yield block
        block //= 2


def _replace_products(x: ir.Value, nodes: Sequence[ir.Node], form: QuantizedInput) -> None:
    graph, builder = nodes[0].graph, GraphBuilder()
    assert isinstance(graph, ir.Graph)
    inverse = builder.constant(1 / form.smoothing, find_free_name(graph, f"{x.name}.smooth"))
    smooth = builder.op("Mul", [x, inverse])
    if form.scale is not None:
        scale = builder.constant(
            np.float32(form.scale), find_free_name(graph, f"{x.name}.activation_scale")
        )
        zero = builder.constant(np.uint8(form.zero_point), find_free_name(graph, f"{x.name}.zero"))
        whole = builder.op("QuantizeLinear", [smooth, scale, zero])
        smooth = builder.op("DequantizeLinear", [whole, scale, zero])
    for node, matrix in zip(nodes, form.matrices, strict=True):
        name = str(node.inputs[1].name)  # type: ignore[union-attr]
        values = builder.constant(matrix.values, find_free_name(graph, f"{name}.int8"))
        name = find_free_name(graph, f"{name}.scale")
        blocks = len(matrix.scales)
        if form.scale is None:
            block = len(matrix.values) // blocks
            wide = builder.op(
                "DequantizeLinear",
                [values, builder.constant(matrix.scales, name)],
                {"axis": 0, "block_size": block},
            )
        else:
            wide = builder.op(
                "DequantizeLinear", [values, builder.constant(matrix.scales[0], name)], {"axis": 1}
            )
        node.replace_input_with(0, smooth)
        node.replace_input_with(1, wide)
    builder.insert_before(nodes[0])


def _reads_large_table(node: ir.Node) -> bool:
    table = node.inputs[0].const_value if is_op(node, "Gather") and node.inputs[0] else None
    if table is None or len(table.shape) != 2 or table.dtype != ir.DataType.FLOAT:
        return False
    axis = node.attributes.get_int("axis", 0)
    rows, _ = table.shape.numpy()
    return axis == 0 and rows >= _MIN_ROWS
