"""Spell Gelu out for opsets before 20."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, is_op, unique_name


class GeluToErf(ir.passes.InPlacePass):
    """Replace ``Gelu(x)`` by ``0.5 * x * (1 + erf(x / sqrt(2)))``.

    Requires: exact Gelu (``approximate="none"``); the tanh form is left alone.
    Changes: Gelu nodes into Div, Erf, Add and Mul. ONNX Runtime fuses that form back into one
    node, and leaves the form that multiplies by ``1 / sqrt(2)`` as it is.
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
        edit = GraphBuilder()
        graph = model.graph
        half = edit.constant(np.float32(0.5), unique_name(graph, "gelu.half"))
        one = edit.constant(np.float32(1), unique_name(graph, "gelu.one"))
        root = edit.constant(np.float32(math.sqrt(2)), unique_name(graph, "gelu.root"))
        edit.insert_before(nodes[0])
        for node in nodes:
            x = node.inputs[0]
            spelled = GraphBuilder()
            erf = spelled.op("Erf", [spelled.op("Div", [x, root])])
            result = spelled.op(
                "Mul", [spelled.op("Mul", [x, spelled.op("Add", [erf, one])]), half]
            )
            spelled.insert_before(node)
            ir.convenience.replace_all_uses_with(node.outputs[0], result)
            graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=True)
