"""Keep one row of the attention mask for each text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op
from bge_export.passes.attention.attention_to_matmul import make_additive

_TOKENS = "attention_mask"

_LARGEST_CONSTANT = 4
"""Most numbers in a constant for axes or a shape. Learned constants have more."""


class BroadcastMask(ir.passes.InPlacePass):
    """Replace a mask that is repeated for every query by one row for each text.

    Versions of transformers compute the square mask differently: 4 expands numbers to add, 5
    gathers booleans. Here it is computed again, once for all layers.

    Requires: an encoder's mask, which is the same for all queries of a text. The pass replaces
        masks
    that are computed from ``attention_mask``, shapes and small constants only; the parity gate
    checks that they mask nothing but padding.
    Changes: such masks of ``(batch, 1, sequence, sequence)`` to numbers to add of
    ``(batch, 1, 1, sequence)``, which every consumer broadcasts.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        tokens = next((value for value in graph.inputs if value.name == _TOKENS), None)
        found = [
            node
            for node in graph
            if is_op(node, "Attention")
            and len(node.inputs) > 3
            and _is_repeated_mask(node.inputs[3])
        ]
        if tokens is None or not found:
            return ir.passes.PassResult(model, modified=False)
        row = _make_row(graph, tokens)
        for node in found:
            node.replace_input_with(3, row)
        return ir.passes.PassResult(model, modified=True)


def _is_repeated_mask(mask: ir.Value | None) -> bool:
    """Return whether a mask has several rows and is computed from ``attention_mask`` only."""
    if mask is None or (mask.shape is not None and len(mask.shape) == 4 and mask.shape[2] == 1):
        return False
    seen: set[ir.Value] = set()
    waiting = [mask]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None and not is_op(node, "Shape"):
            waiting.extend(source for source in node.inputs if source is not None)
        elif (value.is_graph_input() and value.name != _TOKENS) or (
            value.const_value is not None and value.const_value.size > _LARGEST_CONSTANT
        ):
            return False
    return any(value.name == _TOKENS and value.is_graph_input() for value in seen)


def _make_row(graph: ir.Graph, tokens: ir.Value) -> ir.Value:
    builder = GraphBuilder()
    axes = builder.constant(np.array([1, 2], np.int64), find_free_name(graph, "attention.axes"))
    kept = builder.op("Cast", [builder.op("Unsqueeze", [tokens, axes])], {"to": ir.DataType.BOOL})
    row = make_additive(builder, graph, kept)
    row.type = ir.TensorType(ir.DataType.FLOAT)
    if tokens.shape is not None:
        row.shape = ir.Shape([tokens.shape[0], 1, 1, tokens.shape[1]])
    builder.insert_before(graph[0])
    return row
