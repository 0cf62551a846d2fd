"""Small helpers that the passes share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


class GraphBuilder(Tape):
    """New nodes and constants, collected first and put into the graph at once."""

    def constant(self, array: Any, name: str) -> ir.Value:
        """Add a constant."""
        return self.initializer(ir.tensor(np.asarray(array), name=name))

    def insert_before(self, node: ir.Node) -> None:
        """Put everything collected into the graph of ``node``, in front of it."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        for value in self.initializers:
            graph.register_initializer(value)
        graph.insert_before(node, self.nodes)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Tell whether a node is one of these standard operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """Give a constant's content; None for what is computed."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def bias_of(add: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """Find the constant of one dimension that an Add adds, and its content."""
    for value in add.inputs:
        array = constant_array(value)
        if value is not None and array is not None and array.ndim == 1:
            return value, array
    return None


def has_matrix(node: ir.Node) -> bool:
    """Tell a product with a stored matrix."""
    weight = node.inputs[1].const_value if is_op(node, "MatMul") and node.inputs[1] else None
    return weight is not None and len(weight.shape) == 2


def bias_behind(product: ir.Node) -> ir.Node | None:
    """Give the Add of a bias behind a product with a stored matrix, if nothing else uses that."""
    add = only_user(product, "Add") if has_matrix(product) else None
    return add if add is not None and bias_of(add) is not None else None


def replace_constant(node: ir.Node, index: int, array: np.ndarray, *, suffix: str) -> None:
    """Let one input of a node be another constant, in float32, named after the one that it was."""
    old, graph = node.inputs[index], node.graph
    assert old is not None
    assert isinstance(graph, ir.Graph)
    edit = GraphBuilder()
    name = unique_name(graph, f"{old.name}{suffix}")
    node.replace_input_with(index, edit.constant(array.astype(np.float32), name))
    edit.insert_before(node)


def only_user(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Give the one node that uses what a node makes, if it is of this kind."""
    if node is None or node.outputs[0].is_graph_output():
        return None
    users = node.outputs[0].consumers()
    return users[0] if len(users) == 1 and is_op(users[0], op_type) else None


def unique_name(graph: ir.Graph, stem: str) -> str:
    """Find an initializer name that is free."""
    if stem not in graph.initializers:
        return stem
    number = 1
    while f"{stem}_{number}" in graph.initializers:
        number += 1
    return f"{stem}_{number}"
