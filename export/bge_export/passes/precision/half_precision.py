"""Compute in fp16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder
from bge_runtime.errors import ExportError

_LARGEST = float(np.finfo(np.float16).max)
_NO_TOKEN = float(np.finfo(np.float32).min)
"""What masks add, or put in the place of a score: fp16 has a number that serves as well."""


class HalfPrecision(ir.passes.InPlacePass):
    """Turn float32 into fp16, from the weights to the outputs, which stay float32.

    Nothing depends on flags of an engine: the graph says itself what is computed in which type.
    Norms are one node each, inside of which engines sum in float32.

    Requires: no float32 inputs; masks that add the lowest float32, or less than fp16's largest.
    Changes: weights, constants, casts and the types of values; adds a Cast to each output.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ExportError: If a weight has no place in fp16.
            ValueError: If an operator makes float32 in a way this pass does not know.
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
            edit = GraphBuilder()
            wide = edit.op("Cast", [output], {"to": ir.DataType.FLOAT})
            wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), output.shape
            graph.insert_after(last, edit.nodes)
            output.name, wide.name = f"{output.name}_in_fp16", output.name
            graph.outputs[index] = wide
        return ir.passes.PassResult(model, modified=True)


def check_range(array: np.ndarray, name: str, *, leave_out: str) -> None:
    """Check that fp16 has room for a weight, or for what a mask adds.

    Raises:
        ExportError: If it has not; the message says which option to leave out.
    """
    lowest, highest = float(array.min(initial=0)), float(array.max(initial=0))
    if lowest == _NO_TOKEN:
        lowest = float(np.where(array == np.float32(_NO_TOKEN), 0, array).min(initial=0))
    if (largest := max(highest, -lowest)) > _LARGEST:
        raise ExportError(
            f"the weight {name} holds {largest:.4g}, which has no place in fp16. Nothing was "
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
