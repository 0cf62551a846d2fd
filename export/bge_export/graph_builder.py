"""Build nodes of ONNX graphs, and find nodes and constants by their pattern."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape


class GraphBuilder(Tape):
    """Collects new nodes and constants, which are then inserted into a graph together."""

    def constant(self, array: Any, name: str) -> ir.Value:
        """Add a constant."""
        return self.initializer(ir.tensor(np.asarray(array), name=name))

    def insert_before(self, node: ir.Node) -> None:
        """Insert everything collected into the graph of ``node``, before it."""
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        for value in self.initializers:
            graph.register_initializer(value)
        graph.insert_before(node, self.nodes)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Return whether a node is one of these standard operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def read_constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of a constant; None for a computed value."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def find_bias(add: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """Return the one-dimensional constant that an Add adds, and its content."""
    for value in add.inputs:
        array = read_constant(value)
        if value is not None and array is not None and array.ndim == 1:
            return value, array
    return None


def has_matrix(node: ir.Node) -> bool:
    """Return whether a node is a product with a stored matrix."""
    weight = node.inputs[1].const_value if is_op(node, "MatMul") and node.inputs[1] else None
    return weight is not None and len(weight.shape) == 2


def find_bias_add(product: ir.Node) -> ir.Node | None:
    """Return the Add of a bias that is the only user of a product with a stored matrix."""
    add = find_only_user(product, "Add") if has_matrix(product) else None
    return add if add is not None and find_bias(add) is not None else None


def replace_constant(node: ir.Node, index: int, array: np.ndarray, *, suffix: str) -> None:
    """Replace an input of a node by a new float32 constant, named after the old one."""
    old, graph = node.inputs[index], node.graph
    assert old is not None
    assert isinstance(graph, ir.Graph)
    builder = GraphBuilder()
    name = find_free_name(graph, f"{old.name}{suffix}")
    node.replace_input_with(index, builder.constant(array.astype(np.float32), name))
    builder.insert_before(node)


def find_only_user(node: ir.Node | None, op_type: str) -> ir.Node | None:
    """Return the only node that uses a node's output, if it is this operator."""
    if node is None or node.outputs[0].is_graph_output():
        return None
    users = node.outputs[0].consumers()
    return users[0] if len(users) == 1 and is_op(users[0], op_type) else None


def find_free_name(graph: ir.Graph, stem: str) -> str:
    """Return a name that no initializer of the graph has."""
    if stem not in graph.initializers:
        return stem
    number = 1
    while f"{stem}_{number}" in graph.initializers:
        number += 1
    return f"{stem}_{number}"


def hash_tensor(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Return a key that is equal for tensors of the same type, shape and content."""
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()
