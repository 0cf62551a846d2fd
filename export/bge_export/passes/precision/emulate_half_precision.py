"""Let a graph in 16 bits run on a CPU, which has few kernels for them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bge_export.graph_builder import GraphBuilder

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_MOVES = ("Cast", "Gather", "GatherND", "Identity", "If", "Reshape", "Squeeze", "Transpose")
"""Operators that compute nothing; ONNX Runtime has them on a CPU in every type."""


class EmulateHalfPrecision(ir.passes.InPlacePass):
    """Compute in 32 bits, and round where a GPU would have rounded.

    Left to itself, ONNX Runtime puts such casts into graphs in fp16 only, and leaves out
    those between two operators: an overflow there would not show.

    Requires: nothing; it infers the types.
    Changes: inputs in 16 bits of operators that compute are cast to float32, their results
    back. Those of If's branches are among them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        ShapeInferencePass()(model)
        computing = [
            node
            for node in model.graph.all_nodes()
            if node.op_type not in _MOVES and any(_narrow(value) for value in node.inputs)
        ]
        for node in computing:
            _cast_around(node)
        return ir.passes.PassResult(model, modified=bool(computing))


def _narrow(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _NARROW


def _cast_around(node: ir.Node) -> None:
    edit = GraphBuilder()
    name = node.outputs[0].name
    inputs: list[ir.Value | None] = [
        edit.op("Cast", [value], {"to": ir.DataType.FLOAT}) if _narrow(value) else value
        for value in node.inputs
    ]
    outputs = edit.op_multi_out(
        node.op_type,
        inputs,
        node.attributes,
        num_outputs=len(node.outputs),
        domain=node.domain,
    )
    rounded = [
        edit.op("Cast", [new], {"to": old.dtype}) if _narrow(old) else new
        for old, new in zip(node.outputs, outputs, strict=True)
    ]
    for old, new in zip(node.outputs, rounded, strict=True):
        new.type = old.type
    # Names of a branch count in the graph around it as well.
    for number, value in enumerate(value for new in edit.nodes for value in new.outputs):
        value.name = f"{name}_in_32_bits_{number}"
    edit.insert_before(node)
    ir.convenience.replace_all_uses_with(node.outputs, rounded, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
