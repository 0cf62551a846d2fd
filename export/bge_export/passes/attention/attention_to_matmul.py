"""Decompose Attention for opsets before 23."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op


class AttentionToMatMul(ir.passes.InPlacePass):
    """Replace ``Attention(Q, K, V, mask)`` by MatMul, Add, Softmax and MatMul.

    Requires: bidirectional attention over four-dimensional queries, keys and values, with a float
    mask, a boolean mask or none; no past, no softcap, no shared key heads.
    Changes: Attention nodes. The scale is applied to the queries, where TensorRT's fusion expects
    it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ValueError: If an Attention node has another form.
        """
        nodes = [node for node in model.graph if is_op(node, "Attention")]
        for node in nodes:
            builder = GraphBuilder()
            result = decompose_attention(builder, model.graph, node)
            builder.insert_before(node)
            ir.convenience.replace_all_uses_with(node.outputs[0], result)
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))


def decompose_attention(builder: GraphBuilder, graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Add the operators of an Attention node, decomposed for opsets before 23.

    Args:
        builder: Builder to add them to.
        graph: Graph in which the names of constants must be free.
        node: The node. It is not changed.

    Returns:
        The value that replaces the node's output.

    Raises:
        ValueError: If the node does not have the form that `AttentionToMatMul` requires.
    """
    query, key, value = (_require_input(node, index) for index in range(3))
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    past = [present for present in node.inputs[4:] if present is not None]
    attributes = node.attributes
    plain = (
        not past
        and attributes.get_int("is_causal", 0) == 0
        and attributes.get_float("softcap", 0.0) == 0.0
    )
    # A key is as wide as a query, and passes keep its shape.
    width = key.shape[3] if key.shape is not None and len(key.shape) == 4 else None
    if not plain or not isinstance(width, int):
        raise ValueError(f"Attention node {node.name!r} has a form that cannot be lowered")
    scale = attributes.get_float("scale", 1 / math.sqrt(width))
    factor = builder.constant(np.float32(scale), find_free_name(graph, "attention.scale"))
    scaled = builder.op("Mul", [query, factor])
    transposed = builder.op("Transpose", [key], {"perm": [0, 1, 3, 2]})
    scores = builder.op("MatMul", [scaled, transposed])
    if mask is not None:
        if mask.dtype == ir.DataType.BOOL:
            mask = make_additive(builder, graph, mask)
        scores = builder.op("Add", [scores, mask])
    weights = builder.op("Softmax", [scores], {"axis": -1})
    return builder.op("MatMul", [weights, value])


def make_additive(builder: GraphBuilder, graph: ir.Graph, mask: ir.Value) -> ir.Value:
    """Convert a boolean mask, true for tokens that are seen, to numbers to add to scores."""
    keep = builder.constant(np.float32(0), find_free_name(graph, "attention.keep"))
    drop = builder.constant(np.finfo(np.float32).min, find_free_name(graph, "attention.drop"))
    return builder.op("Where", [mask, keep, drop])


def _require_input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"Attention node {node.name!r} lacks input {index}")
    return value
