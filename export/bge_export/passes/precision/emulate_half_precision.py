"""Emulate 16-bit arithmetic on a CPU, which has few 16-bit kernels."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from bge_export.graph_builder import GraphBuilder

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_MOVES = ("Cast", "Gather", "GatherND", "Identity", "If", "Reshape", "Squeeze", "Transpose")
"""Operators without arithmetic. ONNX Runtime's CPU provider has them in all types."""


class EmulateHalfPrecision(ir.passes.InPlacePass):
    """Compute in 32 bits, and round where a GPU would round.

    ONNX Runtime inserts such casts only into fp16 graphs, and removes those between two operators,
    so an overflow there would not be noticed.

    Requires: nothing; types are inferred.
    Changes: 16-bit inputs of operators with arithmetic are cast to float32, and their results back,
    also in the branches of If.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        ShapeInferencePass()(model)
        computing = [
            node
            for node in model.graph.all_nodes()
            if node.op_type not in _MOVES and any(_is_narrow(value) for value in node.inputs)
        ]
        for node in computing:
            _cast_around(node)
        return ir.passes.PassResult(model, modified=bool(computing))


def _is_narrow(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in _NARROW


def _cast_around(node: ir.Node) -> None:
    builder = GraphBuilder()
    name = node.outputs[0].name
    inputs: list[ir.Value | None] = [
        builder.op("Cast", [value], {"to": ir.DataType.FLOAT}) if _is_narrow(value) else value
        for value in node.inputs
    ]
    outputs = builder.op_multi_out(
        node.op_type,
        inputs,
        node.attributes,
        num_outputs=len(node.outputs),
        domain=node.domain,
    )
    rounded = [
        builder.op("Cast", [new], {"to": old.dtype}) if _is_narrow(old) else new
        for old, new in zip(node.outputs, outputs, strict=True)
    ]
    for old, new in zip(node.outputs, rounded, strict=True):
        new.type = old.type
    # Names must be unique in the graph around a branch too.
    for number, value in enumerate(value for new in builder.nodes for value in new.outputs):
        value.name = f"{name}_in_32_bits_{number}"
    builder.insert_before(node)
    ir.convenience.replace_all_uses_with(node.outputs, rounded, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
