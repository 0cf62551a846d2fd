"""Two forms of one graph as branches of a third."""

from __future__ import annotations

import onnx_ir as ir

from bge_export.checkpoint import identity
from bge_runtime.bundle import UNIFORM_LENGTH


def choose_by_length(packed: ir.Model, even: ir.Model) -> ir.Model:
    """Join a graph for any texts and one for texts of one length, which it takes where told to.

    One session then has both, and the weights once. All nodes are inside of the branches, which
    are entered once a run and not in each layer.

    Args:
        packed: The one for any texts. It is changed, and given back.
        even: The other one, with inputs of the same kinds in the same order, outputs of the same
            names, and the same opsets. It is used up.

    Returns:
        The graph of ``packed`` with a further input ``one_length``, bool of shape ``()``.
    """
    graph = packed.graph
    for ours, other in zip(graph.inputs, list(even.graph.inputs), strict=True):
        ir.convenience.replace_all_uses_with(other, ours)
    known = {identity(_content(value)): value for value in graph.initializers.values()}
    for name, value in list(even.graph.initializers.items()):
        del even.graph.initializers[name]
        if same := known.get(identity(_content(value))):
            ir.convenience.replace_all_uses_with(value, same)
        else:
            value.name = f"{name}.one_length"
            graph.register_initializer(value)
    one_length = ir.Value(
        name=UNIFORM_LENGTH, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)
    )
    graph.inputs.append(one_length)
    results = [
        ir.Value(name=value.name, shape=value.shape, type=value.type) for value in graph.outputs
    ]
    branches = {
        "then_branch": _as_branch(even.graph, suffix="one_length"),
        "else_branch": _as_branch(graph, suffix="any_length"),
    }
    graph.outputs.extend(results)
    attributes = [ir.AttrGraph(name, branch) for name, branch in branches.items()]
    graph.append(ir.Node("", "If", [one_length], attributes, outputs=results, name="by_length"))
    return packed


def _as_branch(graph: ir.Graph, *, suffix: str) -> ir.Graph:
    nodes, outputs = list(graph), list(graph.outputs)
    graph.outputs.clear()
    graph.remove(nodes)
    branch = ir.Graph([], outputs, nodes=nodes, name=suffix)
    # Names of one branch must not be those of the other, nor of what is around it.
    for node in ir.traversal.RecursiveGraphIterator(branch):
        for value in node.outputs:
            value.name = f"{value.name}.{suffix}"
    return branch


def _content(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value
