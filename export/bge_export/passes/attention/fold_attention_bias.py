"""Leave out what adding a bias to keys and values comes to."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import bias_of, constant_array, is_op, only_user, replace_constant


class FoldAttentionBias(ir.passes.InPlacePass):
    """Drop the bias of keys, and add that of values behind the output projection.

    A key's bias adds the same to all scores of a query, which softmax takes no notice of. The
    shares of a query sum to 1, so that a value's bias ``b`` reaches the output projection
    ``W`` as it is: ``b @ W`` joins the bias there. Exact but for rounding, and with the numbers
    smaller. On a GPU each of the two was a pass over all tokens.

    Requires: ``Attention(Q, K, V, mask)`` whose keys and values are each
    ``Transpose(Reshape(Add(MatMul, bias)))`` and whose output is only used in
    ``Add(MatMul(Reshape(Transpose(output)), W), bias)``.
    Changes: those Add nodes and the last bias.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        folded = [
            _fold(model.graph, node) for node in list(model.graph) if is_op(node, "Attention")
        ]
        return ir.passes.PassResult(model, modified=any(folded))


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    key, value = (_biased(node.inputs[index]) for index in (1, 2))
    if key is None or value is None:
        return False
    projection = only_user(only_user(only_user(node, "Transpose"), "Reshape"), "MatMul")
    end = only_user(projection, "Add")
    if projection is None or end is None:
        return False
    weight, bias = constant_array(projection.inputs[1]), bias_of(end)
    value_bias = bias_of(value)
    if weight is None or bias is None or value_bias is None:
        return False
    added = value_bias[1].astype(np.float64) @ weight.astype(np.float64)
    total = bias[1].astype(np.float64) + added
    replace_constant(end, end.inputs.index(bias[0]), total, suffix="_with_values")
    for plus in (key, value):
        product = _product_of(plus)
        ir.convenience.replace_all_uses_with(plus.outputs[0], product)
        graph.remove(plus, safe=True)
    return True


def _biased(value: ir.Value | None) -> ir.Node | None:
    """Give the Add below ``Transpose(Reshape(Add))``, if nothing else uses it."""
    for op_type in ("Transpose", "Reshape", "Add"):
        node = value.producer() if value is not None else None
        if node is None or not is_op(node, op_type) or len(node.outputs[0].consumers()) != 1:
            return None
        value = node.inputs[0]
    return node if node is not None and bias_of(node) is not None else None


def _product_of(add: ir.Node) -> ir.Value:
    product = next(value for value in add.inputs if constant_array(value) is None)
    assert product is not None
    return product
