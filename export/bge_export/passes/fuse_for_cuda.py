"""Fuse nodes for which ONNX Runtime's CUDA provider has one kernel."""

from __future__ import annotations

import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, is_op
from bge_export.passes.attention.packed_attention import CONTRIB


class FuseForCuda(ir.passes.InPlacePass):
    """Fuse bias and Gelu, and bias, residual and norm. Each was a separate pass over all tokens.

    ONNX Runtime has the same fusions, but an earlier one moves the bias into the matrix product,
    where a GPU adds it in a separate pass.

    Requires: ``Gelu(Add(x, bias))`` in its exact form;
    ``LayerNormalization(Add(Add(x, bias), residual))`` over the last axis.
    Changes: those nodes, to BiasGelu and SkipLayerNormalization. In fp16, the latter's default
        kernel
    sums squares in fp16 (``skip_layer_norm_impl.cu``), so the provider's option
    ``enable_skip_layer_norm_strict_mode`` must be on.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        model.opset_imports[CONTRIB] = 1
        changed = [_fuse(model.graph, node) for node in list(model.graph)]
        return ir.passes.PassResult(model, modified=any(changed))


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    builder = GraphBuilder()
    if is_op(node, "Gelu") and node.attributes.get_string("approximate", "none") == "none":
        biased = _split_bias(node.inputs[0])
        if biased is None:
            return False
        builder.op("BiasGelu", biased, domain=CONTRIB)
    elif is_op(node, "LayerNormalization") and node.attributes.get_int("axis", -1) == -1:
        total = _find_only_producer(node.inputs[0], "Add")
        sides = list(total.inputs) if total is not None else []
        found = next((side for side in sides if _split_bias(side) is not None), None)
        biased = _split_bias(found)
        if biased is None or len(node.inputs) < 3:
            return False
        (residual,) = (side for side in sides if side is not found)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        product, bias = biased
        builder.op(
            "SkipLayerNormalization",
            [product, residual, node.inputs[1], node.inputs[2], bias],
            {"epsilon": epsilon},
            domain=CONTRIB,
        )
    else:
        return False
    (fused,) = builder.nodes
    old, new = node.outputs[0], fused.outputs[0]
    new.type, new.shape = old.type, old.shape
    builder.insert_before(node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _find_only_producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return a value's producer, if it is this operator and the value has one user."""
    node = value.producer() if value is not None else None
    if value is None or len(value.consumers()) != 1 or not is_op(node, op_type):
        return None
    return node


def _split_bias(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """Return ``x`` and ``bias`` of ``Add(x, bias)``; None for another value."""
    node = _find_only_producer(value, "Add")
    if node is None:
        return None
    for bias, other in (node.inputs, reversed(node.inputs)):
        if (
            bias is not None
            and other is not None
            and bias.is_initializer()
            and bias.shape is not None
            and len(bias.shape) == 1
        ):
            return other, bias
    return None
