"""Keep the attention mask at one row a text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, is_op, unique_name
from bge_export.passes.attention.attention_to_matmul import to_add

_TOKENS = "attention_mask"

_LARGEST_CONSTANT = 4
"""Numbers in a constant that says axes or a shape; what is learned has more."""


class BroadcastMask(ir.passes.InPlacePass):
    """Replace a mask that is repeated for every query by one row for each text.

    How it comes about depends on the version of transformers: 4 expands numbers to add, 5
    gathers truth values, by the square of the length. Here it is made anew, once for all layers.

    Requires: an encoder's mask, which is that of the tokens for each query of a text. The pass
    takes a mask that is computed from ``attention_mask``, from shapes and from small constants
    alone; that it says no more than which tokens are padding is left to the parity gate.
    Changes: such masks of ``(batch, 1, sequence, sequence)`` to numbers to add, of
    ``(batch, 1, 1, sequence)``, which every consumer broadcasts.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        tokens = next((value for value in graph.inputs if value.name == _TOKENS), None)
        found = [
            node
            for node in graph
            if is_op(node, "Attention") and len(node.inputs) > 3 and _repeats(node.inputs[3])
        ]
        if tokens is None or not found:
            return ir.passes.PassResult(model, modified=False)
        row = _row(graph, tokens)
        for node in found:
            node.replace_input_with(3, row)
        return ir.passes.PassResult(model, modified=True)


def _repeats(mask: ir.Value | None) -> bool:
    """Tell whether a mask has more than one row, and stems from the tokens' alone."""
    if mask is None or (mask.shape is not None and len(mask.shape) == 4 and mask.shape[2] == 1):
        return False
    seen: set[ir.Value] = set()
    coming = [mask]
    while coming:
        value = coming.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None and not is_op(node, "Shape"):
            coming.extend(source for source in node.inputs if source is not None)
        elif (value.is_graph_input() and value.name != _TOKENS) or (
            value.const_value is not None and value.const_value.size > _LARGEST_CONSTANT
        ):
            return False
    return any(value.name == _TOKENS and value.is_graph_input() for value in seen)


def _row(graph: ir.Graph, tokens: ir.Value) -> ir.Value:
    edit = GraphBuilder()
    axes = edit.constant(np.array([1, 2], np.int64), unique_name(graph, "attention.axes"))
    kept = edit.op("Cast", [edit.op("Unsqueeze", [tokens, axes])], {"to": ir.DataType.BOOL})
    row = to_add(edit, graph, kept)
    row.type = ir.TensorType(ir.DataType.FLOAT)
    if tokens.shape is not None:
        row.shape = ir.Shape([tokens.shape[0], 1, 1, tokens.shape[1]])
    edit.insert_before(graph[0])
    return row
