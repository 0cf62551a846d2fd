"""Decompose Gelu for opsets before 20."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op


class GeluToErf(ir.passes.InPlacePass):
    """Replace ``Gelu(x)`` by ``0.5 * x * (1 + erf(x / sqrt(2)))``.

    Requires: exact Gelu (``approximate="none"``); the tanh form stays.
    Changes: Gelu nodes to Div, Erf, Add and Mul. ONNX Runtime fuses this form back into one node,
        but
    not the form that multiplies by ``1 / sqrt(2)``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        nodes = [
            node
            for node in model.graph
            if is_op(node, "Gelu") and node.attributes.get_string("approximate", "none") == "none"
        ]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        builder = GraphBuilder()
        graph = model.graph
        half = builder.constant(np.float32(0.5), find_free_name(graph, "gelu.half"))
        one = builder.constant(np.float32(1), find_free_name(graph, "gelu.one"))
        root = builder.constant(np.float32(math.sqrt(2)), find_free_name(graph, "gelu.root"))
        builder.insert_before(nodes[0])
        for node in nodes:
            x = node.inputs[0]
            decomposed = GraphBuilder()
            erf = decomposed.op("Erf", [decomposed.op("Div", [x, root])])
            result = decomposed.op(
                "Mul", [decomposed.op("Mul", [x, decomposed.op("Add", [erf, one])]), half]
            )
            decomposed.insert_before(node)
            ir.convenience.replace_all_uses_with(node.outputs[0], result)
            graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=True)
