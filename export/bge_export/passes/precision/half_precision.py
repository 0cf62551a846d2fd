"""Convert a graph to fp16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder
from bge_runtime.errors import ExportError

_LARGEST = float(np.finfo(np.float16).max)
_NO_TOKEN = float(np.finfo(np.float32).min)
"""The number that masks add to scores or replace them with. fp16's lowest number replaces it."""


class HalfPrecision(ir.passes.InPlacePass):
    """Convert float32 to fp16 everywhere except in the outputs.

    The graph itself sets the type of each operation, so engines need no flags. Each norm is one
    node, in which engines sum in float32.

    Requires: no float32 inputs; masks that add the lowest float32, or numbers within fp16's range.
    Changes: weights, constants, casts and the types of values; adds a Cast to each output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ExportError: If a weight is out of fp16's range.
            ValueError: If an operator creates float32 in an unsupported way.
        """
        graph = model.graph
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype != ir.DataType.FLOAT:
                continue
            narrow = ir.tensor(_narrow(tensor.numpy(), str(value.name)), name=value.name)
            value.const_value, value.type = narrow, ir.TensorType(narrow.dtype)
        for node in graph.all_nodes():
            if "to" in node.attributes and node.attributes.get_int("to") == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
            if node.op_type in ("Constant", "ConstantOfShape") and _is_float(node):
                raise ValueError(f"{node.op_type} node {node.name!r} makes float32")
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    value.type = ir.TensorType(ir.DataType.FLOAT16)
        for index, output in enumerate(graph.outputs):
            last = output.producer()
            assert last is not None
            builder = GraphBuilder()
            wide = builder.op("Cast", [output], {"to": ir.DataType.FLOAT})
            wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), output.shape
            graph.insert_after(last, builder.nodes)
            output.name, wide.name = f"{output.name}_in_fp16", output.name
            graph.outputs[index] = wide
        return ir.passes.PassResult(model, modified=True)


def check_range(array: np.ndarray, name: str, *, leave_out: str) -> None:
    """Check that a weight, or a mask's constant, is within fp16's range.

    Raises:
        ExportError: If it is not. The message names the option to leave out.
    """
    lowest, highest = float(array.min(initial=0)), float(array.max(initial=0))
    if lowest == _NO_TOKEN:
        lowest = float(np.where(array == np.float32(_NO_TOKEN), 0, array).min(initial=0))
    if (largest := max(highest, -lowest)) > _LARGEST:
        raise ExportError(
            f"the weight {name} holds {largest:.4g}, which is out of fp16's range. Nothing was "
            f"written; leave {leave_out} out"
        )


def _narrow(array: np.ndarray, name: str) -> np.ndarray:
    check_range(array, name, leave_out="--precision fp16")
    array = np.where(array == np.float32(_NO_TOKEN), np.float32(-_LARGEST), array)
    return array.astype(np.float16)


def _is_float(node: ir.Node) -> bool:
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        return True
    return node.outputs[0].dtype == ir.DataType.FLOAT or any(
        attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT
        for attribute in node.attributes.values()
    )
