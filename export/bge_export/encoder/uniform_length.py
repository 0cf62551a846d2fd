"""Join two forms of a graph as branches: one for any texts, one for texts of one length."""

from __future__ import annotations

import onnx_ir as ir

from bge_export.graph_builder import hash_tensor
from bge_runtime.bundle import UNIFORM_LENGTH


def choose_by_length(packed: ir.Model, uniform: ir.Model) -> ir.Model:
    """Join a graph for any texts and a graph for texts of one length.

    One session then has both graphs, and the weights once. All nodes are inside the branches, which
    are entered once in a run, not in each layer.

    Args:
        packed: The graph for any texts. It is changed and returned.
        uniform: The graph for texts of one length. Its inputs have the same types and order, its
            outputs the same names, and its opsets are the same. It cannot be used afterwards.

    Returns:
        The graph of ``packed`` with the additional input ``one_length``, bool of shape ``()``,
        which selects the branch.
    """
    graph = packed.graph
    for ours, other in zip(graph.inputs, list(uniform.graph.inputs), strict=True):
        ir.convenience.replace_all_uses_with(other, ours)
    known = {hash_tensor(_content(value)): value for value in graph.initializers.values()}
    for name, value in list(uniform.graph.initializers.items()):
        del uniform.graph.initializers[name]
        if same := known.get(hash_tensor(_content(value))):
            ir.convenience.replace_all_uses_with(value, same)
        else:
            value.name = f"{name}.one_length"
            graph.register_initializer(value)
    flag = ir.Value(name=UNIFORM_LENGTH, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(flag)
    results = [
        ir.Value(name=value.name, shape=value.shape, type=value.type) for value in graph.outputs
    ]
    branches = {
        "then_branch": _as_branch(uniform.graph, suffix="one_length"),
        "else_branch": _as_branch(graph, suffix="any_length"),
    }
    graph.outputs.extend(results)
    attributes = [ir.AttrGraph(name, branch) for name, branch in branches.items()]
    graph.append(ir.Node("", "If", [flag], attributes, outputs=results, name="by_length"))
    return packed


def _as_branch(graph: ir.Graph, *, suffix: str) -> ir.Graph:
    nodes, outputs = list(graph), list(graph.outputs)
    graph.outputs.clear()
    graph.remove(nodes)
    branch = ir.Graph([], outputs, nodes=nodes, name=suffix)
    # Names must be unique in both branches and in the graph around them.
    for node in ir.traversal.RecursiveGraphIterator(branch):
        for value in node.outputs:
            value.name = f"{value.name}.{suffix}"
    return branch


def _content(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value
