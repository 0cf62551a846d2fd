"""Spell Attention out for opsets before 23."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, is_op, unique_name


class AttentionToMatMul(ir.passes.InPlacePass):
    """Replace ``Attention(Q, K, V, mask)`` by MatMul, Add, Softmax and MatMul.

    Requires: bidirectional attention over four-dimensional queries, keys and values,
    with a float or boolean mask or none; no past, no softcap, no shared key heads.
    Changes: Attention nodes. The scale is multiplied into the queries, where
    TensorRT's fusion looks for it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ValueError: If an Attention node is of another form.
        """
        nodes = [node for node in model.graph if is_op(node, "Attention")]
        for node in nodes:
            edit = GraphBuilder()
            result = spell_out(edit, model.graph, node)
            edit.insert_before(node)
            ir.convenience.replace_all_uses_with(node.outputs[0], result)
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))


def spell_out(edit: GraphBuilder, graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Add what an Attention node computes, in operators of before opset 23.

    Args:
        edit: Where to add it.
        graph: Where names of constants must be free.
        node: The node; it is left as it is.

    Returns:
        What replaces the node's output.

    Raises:
        ValueError: If the node is of another form than `AttentionToMatMul` requires.
    """
    query, key, value = (_required(node, index) for index in range(3))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    past = [present for present in node.inputs[4:] if present is not None]
    attributes = node.attributes
    plain = (
        not past
        and attributes.get_int("is_causal", 0) == 0
        and attributes.get_float("softcap", 0.0) == 0.0
    )
    # A key is as wide as a query, and passes leave its shape in place.
    width = key.shape[3] if key.shape is not None and len(key.shape) == 4 else None
    if not plain or not isinstance(width, int):
        raise ValueError(f"Attention node {node.name!r} is of a form that cannot be lowered")
    scale = attributes.get_float("scale", 1 / math.sqrt(width))
    factor = edit.constant(np.float32(scale), unique_name(graph, "attention.scale"))
    scaled = edit.op("Mul", [query, factor])
    turned = edit.op("Transpose", [key], {"perm": [0, 1, 3, 2]})
    scores = edit.op("MatMul", [scaled, turned])
    if mask is not None:
        if mask.dtype == ir.DataType.BOOL:
            mask = to_add(edit, graph, mask)
        scores = edit.op("Add", [scores, mask])
    weights = edit.op("Softmax", [scores], {"axis": -1})
    return edit.op("MatMul", [weights, value])


def to_add(edit: GraphBuilder, graph: ir.Graph, mask: ir.Value) -> ir.Value:
    """Turn a boolean mask, true for what is attended to, into numbers to add to scores."""
    keep = edit.constant(np.float32(0), unique_name(graph, "attention.keep"))
    drop = edit.constant(np.finfo(np.float32).min, unique_name(graph, "attention.drop"))
    return edit.op("Where", [mask, keep, drop])


def _required(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"Attention node {node.name!r} lacks input {index}")
    return value
