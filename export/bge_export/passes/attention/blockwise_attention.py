"""Compute attention block by block if no text is padded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op
from bge_export.passes.attention.attention_to_matmul import decompose_attention
from bge_export.passes.attention.heads import find_joined, find_sources, find_split

_CONTRIB = "com.microsoft"
_SWAP_HEADS = {"perm": [0, 2, 1, 3]}
"""Swaps tokens and heads."""


class BlockwiseAttention(ir.passes.InPlacePass):
    """Replace Attention by ``If(nothing is masked, MultiHeadAttention, MatMul … MatMul)``.

    Decomposed attention stores one score for each pair of tokens: 4.3 GB for one text of 8192
    tokens with 16 heads. ONNX Runtime's MultiHeadAttention stores one block of scores, but on a CPU
    only without a mask (``MlasFlashAttention`` in 1.32). A batch without padding needs none.

    That operator first transposes queries, keys and values, and holds both forms. So an even number
    of heads is split into halves, which are computed one after the other: 160 instead of 224 MiB
    for 8192 tokens of 1024 dimensions. The split is outside the branches, because the inputs of a
    branch are held until it ends.

    Requires: ``Attention(Q, K, V, mask)`` that `decompose_attention` supports, whose queries, keys
    and values are each ``Transpose(Reshape(x))`` of ``(batch, sequence, width)`` and whose output
    is only used in ``Reshape(Transpose(output))`` of that shape; an input ``attention_mask``.
    Changes: those Attention nodes. Others, such as one with a single query, stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        nodes = [
            node
            for node in graph
            if is_op(node, "Attention") and find_sources(node) and find_joined(node)
        ]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        model.opset_imports[_CONTRIB] = 1
        unmasked = _check_unmasked(graph)
        for node in nodes:
            _replace_by_branches(graph, node, unmasked)
        return ir.passes.PassResult(model, modified=True)


def _check_unmasked(graph: ir.Graph) -> ir.Value:
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    builder = GraphBuilder()
    least = builder.op("ReduceMin", [mask], {"keepdims": 0})
    one = builder.constant(np.int64(1), find_free_name(graph, "attention.one"))
    result = builder.op("Equal", [least, one])
    builder.insert_before(graph[0])
    return result


def _replace_by_branches(graph: ir.Graph, node: ir.Node, unmasked: ir.Value) -> None:
    """Replace the node, its splits into heads and their join by ``If``.

    Only the branch with decomposed attention holds the split tensors: three of 32 MiB for 8192
    tokens of 1024 dimensions.
    """
    sources, joined = find_sources(node), find_joined(node)
    assert sources is not None
    assert joined is not None
    heads, width = find_split(node.inputs[0]) or (0, 0)
    groups = 2 if heads % 2 == 0 else 1
    in_groups = [_split_groups(graph, source, groups) for source in sources]

    blocks = GraphBuilder()
    attributes: dict[str, int | float] = {"num_heads": heads // groups}
    if "scale" in node.attributes:
        attributes["scale"] = node.attributes.get_float("scale", 1.0)
    attended_groups = [
        blocks.op("MultiHeadAttention", group, attributes, domain=_CONTRIB)
        for group in zip(*in_groups, strict=True)
    ]
    if groups > 1:
        blocks.op("Concat", attended_groups, {"axis": 2})

    decomposed = GraphBuilder()
    split = decomposed.constant(
        np.array([0, 0, heads, width], np.int64), find_free_name(graph, "attention.split")
    )
    join = decomposed.constant(
        np.array([0, 0, -1], np.int64), find_free_name(graph, "attention.join")
    )
    in_heads: list[ir.Value | None] = []
    for parts, before in zip(in_groups, node.inputs, strict=False):
        source = decomposed.op("Concat", parts, {"axis": 2}) if groups > 1 else parts[0]
        transposed = decomposed.op(
            "Transpose", [decomposed.op("Reshape", [source, split])], _SWAP_HEADS
        )
        if before is not None:
            transposed.shape, transposed.type = before.shape, before.type
        in_heads.append(transposed)
    inputs = [*in_heads, *node.inputs[3:]]
    attended = decompose_attention(
        decomposed,
        graph,
        ir.Node("", "Attention", inputs, node.attributes.values(), name=node.name),
    )
    decomposed.op("Reshape", [decomposed.op("Transpose", [attended], _SWAP_HEADS), join])

    branches = {}
    for name, builder in (("then_branch", blocks), ("else_branch", decomposed)):
        for value in builder.initializers:
            graph.register_initializer(value)
        nodes = list(builder.nodes)
        for number, inner in enumerate(nodes):
            # Unique in the whole model; automatic names count from zero in each graph.
            inner.name = f"{node.outputs[0].name}.{name}.{number}"
            inner.outputs[0].name = inner.name
        branches[name] = ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=name)
    choice = GraphBuilder()
    chosen = choice.op("If", [unmasked], branches)
    chosen.shape, chosen.type = joined.shape, joined.type
    choice.insert_before(node)
    ir.convenience.replace_all_uses_with(joined, chosen)
    after = joined.producer()
    assert after is not None
    turn = after.inputs[0].producer() if after.inputs[0] is not None else None
    assert turn is not None
    graph.remove([after, turn, node], safe=True)


def _split_groups(graph: ir.Graph, value: ir.Value, groups: int) -> list[ir.Value]:
    """Split joined heads into groups where they are computed. Nodes may share a split."""
    if groups == 1:
        return [value]
    split = next((user for user in value.consumers() if is_op(user, "Split")), None)
    if split is None:
        builder = GraphBuilder()
        parts = builder.op_multi_out(
            "Split", [value], {"axis": 2, "num_outputs": groups}, num_outputs=groups
        )
        split = parts[0].producer()
        producer = value.producer()
        assert split is not None
        assert producer is not None
        graph.insert_after(producer, builder.nodes)
    return list(split.outputs)
