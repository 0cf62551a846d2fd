"""Remove the biases of keys and values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import (
    find_bias,
    find_only_user,
    is_op,
    read_constant,
    replace_constant,
)


class FoldAttentionBias(ir.passes.InPlacePass):
    """Drop the bias of keys, and add that of values after the output projection.

    A key's bias adds the same number to all scores of a query, which softmax ignores. The weights
    of a query sum to 1, so a value's bias ``b`` reaches the output projection ``W`` unchanged: ``b
    @ W`` is added to the bias there. Exact except for rounding, with smaller numbers. On a GPU,
    adding each of the two biases was a pass over all tokens.

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
    key, value = (_find_biased(node.inputs[index]) for index in (1, 2))
    if key is None or value is None:
        return False
    projection = find_only_user(
        find_only_user(find_only_user(node, "Transpose"), "Reshape"), "MatMul"
    )
    end = find_only_user(projection, "Add")
    if projection is None or end is None:
        return False
    weight, bias = read_constant(projection.inputs[1]), find_bias(end)
    value_bias = find_bias(value)
    if weight is None or bias is None or value_bias is None:
        return False
    added = value_bias[1].astype(np.float64) @ weight.astype(np.float64)
    total = bias[1].astype(np.float64) + added
    replace_constant(end, end.inputs.index(bias[0]), total, suffix="_with_values")
    for plus in (key, value):
        product = _find_product(plus)
        ir.convenience.replace_all_uses_with(plus.outputs[0], product)
        graph.remove(plus, safe=True)
    return True


def _find_biased(value: ir.Value | None) -> ir.Node | None:
    """Return the Add in ``Transpose(Reshape(Add))``, if it has no other user."""
    for op_type in ("Transpose", "Reshape", "Add"):
        node = value.producer() if value is not None else None
        if node is None or not is_op(node, op_type) or len(node.outputs[0].consumers()) != 1:
            return None
        value = node.inputs[0]
    return node if node is not None and find_bias(node) is not None else None


def _find_product(add: ir.Node) -> ir.Value:
    product = next(value for value in add.inputs if read_constant(value) is None)
    assert product is not None
    return product
