"""Run feed-forward layers over chunks of a few thousand tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Gelu", "Erf", "Tanh")


class ChunkFeedForward(ir.passes.InPlacePass):
    """Move ``MatMul, Gelu, MatMul`` of each layer into a Loop over chunks of the sequence.

    The tensors between the two products are four times as wide as the layer's input: two of 128 MiB
    for one text of 8192 tokens of 1024 dimensions. Tokens do not depend on each other here, so
    values stay the same. A text of one chunk, as nearly all are, is one iteration of the loop. A
    branch without a loop for short texts would not pay: ONNX Runtime packs a weight for each
    product that uses it.

    Requires: ``MatMul(elementwise(MatMul(x, W1)), W2)`` with ``x`` of shape
    ``(batch, sequence, width)``, ``W2`` narrower than ``W1``, and elementwise operators of that
    value and of constants that are the same for all tokens; an input ``input_ids``.
    Changes: those nodes, and the Add of a bias after them.
    """

    def __init__(self, tokens: int) -> None:
        """Choose the number of tokens in a chunk."""
        super().__init__()
        self.tokens = tokens

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        found = [layer for node in graph if (layer := _find_layer(node)) is not None]
        if not found:
            return ir.passes.PassResult(model, modified=False)
        builder = GraphBuilder()
        constants = {
            name: builder.constant(value, find_free_name(graph, f"parts.{name}"))
            for name, value in {
                "tokens": np.array([self.tokens], np.int64),
                "round_up": np.array([self.tokens - 1], np.int64),
                "none": np.array([0], np.int64),
                "axis": np.array([1], np.int64),
                "true": np.array(True),
            }.items()
        }
        ids = next(value for value in graph.inputs if value.name == "input_ids")
        length = builder.op("Shape", [ids], {"start": 1, "end": 2})
        parts = builder.op(
            "Div", [builder.op("Add", [length, constants["round_up"]]), constants["tokens"]]
        )
        constants["parts"] = builder.op("Squeeze", [parts, constants["none"]])
        builder.insert_before(graph[0])
        for layer in found:
            _replace_by_loop(graph, layer, constants)
        return ir.passes.PassResult(model, modified=True)


def _find_layer(node: ir.Node) -> list[ir.Node] | None:
    """Return the nodes of the feed-forward layer that ends with this MatMul, in order."""
    if not is_op(node, "MatMul") or not _is_constant(node.inputs[1], rank=2):
        return None
    between: list[ir.Node] = []
    first: ir.Node | None = None
    waiting = [node.inputs[0]]
    while waiting:
        value = waiting.pop()
        before = value.producer() if value is not None else None
        if before is None or before in between or before is first:
            continue
        if is_op(before, *_ELEMENTWISE):
            between.append(before)
            waiting += [x for x in before.inputs if not _is_constant(x, rank=1)]
        elif is_op(before, "MatMul") and first is None:
            first = before
        else:
            return None
    if first is None or not between or not _widens(first, node):
        return None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    inside = {first, *between}
    if any(
        value.is_graph_output() or not set(value.consumers()) <= {*inside, node}
        for inner in inside
        for value in inner.outputs
    ):
        return None
    last = [node]
    users = node.outputs[0].consumers()
    if (
        len(users) == 1
        and is_op(users[0], "Add")
        and any(_is_constant(x, rank=1) for x in users[0].inputs)
        and not node.outputs[0].is_graph_output()
    ):
        last.append(users[0])
    return [inner for inner in graph if inner in inside] + last


def _widens(first: ir.Node, last: ir.Node) -> bool:
    """Return whether the values between two products are wider than those around them."""
    source, wide, narrow = first.inputs[0], first.inputs[1], last.inputs[1]
    if source is None or source.shape is None or len(source.shape) != 3:
        return False
    # A layer with one token for each text, such as a pruned last layer, needs no chunks.
    if isinstance(source.shape[1], int) or not _is_constant(wide, rank=2):
        return False
    assert wide is not None
    assert narrow is not None
    assert wide.const_value is not None
    assert narrow.const_value is not None
    before, between = wide.const_value.shape.numpy()
    return between > before >= narrow.const_value.shape.numpy()[1]


def _replace_by_loop(graph: ir.Graph, layer: list[ir.Node], constants: dict[str, ir.Value]) -> None:
    source, result = layer[0].inputs[0], layer[-1].outputs[0]
    assert source is not None
    stem = f"{result.name}.parts"
    turn = ir.Value(name=f"{stem}.turn", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    go_on = ir.Value(name=f"{stem}.go_on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    done = ir.Value(name=f"{stem}.done", type=ir.TensorType(ir.DataType.FLOAT))
    body = GraphBuilder()
    start = body.op("Mul", [turn, constants["tokens"]])
    end = body.op("Add", [start, constants["tokens"]])
    values = {source: body.op("Slice", [source, start, end, constants["axis"]])}
    for node in layer:
        inputs = [values.get(x, x) if x is not None else None for x in node.inputs]
        values[node.outputs[0]] = body.op(node.op_type, inputs, node.attributes)
    joined = body.op("Concat", [done, values[result]], {"axis": 1})
    joined.type = done.type
    still = body.op("Identity", [go_on])
    still.shape, still.type = go_on.shape, go_on.type
    nodes = list(body.nodes)
    for number, node in enumerate(nodes):
        # Unique in the whole model; automatic names count from zero in each graph.
        node.name = f"{stem}.{number}"
        node.outputs[0].name = node.name
    parts = ir.Graph([turn, go_on, done], [still, joined], nodes=nodes, name=stem)
    builder = GraphBuilder()
    none = constants["none"]
    empty = builder.op("Slice", [source, none, none, constants["axis"]])
    whole = builder.op("Loop", [constants["parts"], constants["true"], empty], {"body": parts})
    whole.shape, whole.type = result.shape, result.type
    builder.insert_before(layer[-1])
    name = result.name
    ir.convenience.replace_all_uses_with(result, whole, replace_graph_outputs=True)
    graph.remove(list(reversed(layer)), safe=True)
    whole.name = name


def _is_constant(value: ir.Value | None, *, rank: int) -> bool:
    return (
        value is not None
        and value.is_initializer()
        and value.shape is not None
        and len(value.shape) <= rank
    )
