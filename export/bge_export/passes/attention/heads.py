"""Helper of the attention passes: how an Attention node's inputs are split into heads."""

from __future__ import annotations

import onnx_ir as ir

from bge_export.graph_builder import is_op


def find_sources(node: ir.Node) -> list[ir.Value] | None:
    """Return queries, keys and values before they are split into heads; None if unknown."""
    found = []
    for value in node.inputs[:3]:
        if find_split(value) is None:
            return None
        assert value is not None
        transpose = value.producer()
        assert transpose is not None
        reshape = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
        source = reshape.inputs[0] if reshape is not None else None
        if source is None:
            return None
        found.append(source)
    return found


def find_joined(node: ir.Node) -> ir.Value | None:
    """Return ``Reshape(Transpose(output))``, the joined heads, if the output has no other use."""
    value = node.outputs[0]
    for op_type in ("Transpose", "Reshape"):
        users = value.consumers()
        if len(users) != 1 or not is_op(users[0], op_type) or value.is_graph_output():
            return None
        value = users[0].outputs[0]
    return value


def find_split(value: ir.Value | None) -> tuple[int, int] | None:
    """Return number and width of the heads of ``Transpose(Reshape(x), (0, 2, 1, 3))``."""
    transpose = value.producer() if value is not None else None
    if not is_op(transpose, "Transpose"):
        return None
    assert transpose is not None
    split = transpose.inputs[0]
    shape = split.shape if split is not None else None
    if (
        split is None
        or not is_op(split.producer(), "Reshape")
        or list(transpose.attributes["perm"].as_ints()) != [0, 2, 1, 3]
        or shape is None
        or len(shape) != 4
        or shape[1] == 1
    ):
        return None
    heads, width = shape[2], shape[3]
    return (heads, width) if isinstance(heads, int) and isinstance(width, int) else None
