"""Let ONNX Runtime attend block by block where no text is padded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, is_op, unique_name
from bge_export.passes.attention.attention_to_matmul import spell_out
from bge_export.passes.attention.heads import joined_of, sources_of, split_of

_CONTRIB = "com.microsoft"
_TURN = {"perm": [0, 2, 1, 3]}
"""Between heads beside each other in each token and tokens in each head."""


class BlockwiseAttention(ir.passes.InPlacePass):
    """Replace Attention by ``If(nothing is masked, MultiHeadAttention, MatMul … MatMul)``.

    Spelled out, attention holds one score for each pair of tokens: 4.3 GB for one text of
    8192 tokens with 16 heads. ONNX Runtime's MultiHeadAttention holds a block of them, but
    on a CPU only without any mask (``MlasFlashAttention`` in its 1.32). A batch without
    padding needs none.

    It turns queries, keys and values around first and holds both forms of them. An even
    number of heads is therefore split into two halves, which it takes one after the other:
    160 MiB, in place of 224, for 8192 tokens of 1024 dimensions. The split is outside of the
    branches, since what a branch reads is held until its end.

    Requires: ``Attention(Q, K, V, mask)`` of a form that `spell_out` takes, whose queries,
    keys and values are each ``Transpose(Reshape(x))`` of ``(batch, sequence, width)`` and
    whose output is only used in ``Reshape(Transpose(output))`` of that form; an input
    ``attention_mask``.
    Changes: those Attention nodes. Others, such as one with a single query, stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        graph = model.graph
        nodes = [
            node
            for node in graph
            if is_op(node, "Attention") and sources_of(node) and joined_of(node)
        ]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        model.opset_imports[_CONTRIB] = 1
        unmasked = _nothing_masked(graph)
        for node in nodes:
            _choose(graph, node, unmasked)
        return ir.passes.PassResult(model, modified=True)


def _nothing_masked(graph: ir.Graph) -> ir.Value:
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    edit = GraphBuilder()
    least = edit.op("ReduceMin", [mask], {"keepdims": 0})
    one = edit.constant(np.int64(1), unique_name(graph, "attention.one"))
    result = edit.op("Equal", [least, one])
    edit.insert_before(graph[0])
    return result


def _choose(graph: ir.Graph, node: ir.Node, unmasked: ir.Value) -> None:
    """Put ``If`` in the place of the node, of its splits into heads and of their joining.

    Only the branch that spells attention out holds the split tensors: three of 32 MiB for
    8192 tokens of 1024 dimensions.
    """
    sources, joined = sources_of(node), joined_of(node)
    assert sources is not None
    assert joined is not None
    heads, width = split_of(node.inputs[0]) or (0, 0)
    groups = 2 if heads % 2 == 0 else 1
    in_groups = [_grouped(graph, source, groups) for source in sources]

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

    spelled = GraphBuilder()
    split = spelled.constant(
        np.array([0, 0, heads, width], np.int64), unique_name(graph, "attention.split")
    )
    join = spelled.constant(np.array([0, 0, -1], np.int64), unique_name(graph, "attention.join"))
    in_heads: list[ir.Value | None] = []
    for parts, before in zip(in_groups, node.inputs, strict=False):
        source = spelled.op("Concat", parts, {"axis": 2}) if groups > 1 else parts[0]
        turned = spelled.op("Transpose", [spelled.op("Reshape", [source, split])], _TURN)
        if before is not None:
            turned.shape, turned.type = before.shape, before.type
        in_heads.append(turned)
    inputs = [*in_heads, *node.inputs[3:]]
    attended = spell_out(
        spelled, graph, ir.Node("", "Attention", inputs, node.attributes.values(), name=node.name)
    )
    spelled.op("Reshape", [spelled.op("Transpose", [attended], _TURN), join])

    branches = {}
    for name, edit in (("then_branch", blocks), ("else_branch", spelled)):
        for value in edit.initializers:
            graph.register_initializer(value)
        nodes = list(edit.nodes)
        for number, inner in enumerate(nodes):
            # Unique in the whole model: left to itself, each graph counts from zero.
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


def _grouped(graph: ir.Graph, value: ir.Value, groups: int) -> list[ir.Value]:
    """Split what has the heads side by side, as soon as it is there; two nodes may share it."""
    if groups == 1:
        return [value]
    split = next((user for user in value.consumers() if is_op(user, "Split")), None)
    if split is None:
        edit = GraphBuilder()
        parts = edit.op_multi_out(
            "Split", [value], {"axis": 2, "num_outputs": groups}, num_outputs=groups
        )
        split = parts[0].producer()
        producer = value.producer()
        assert split is not None
        assert producer is not None
        graph.insert_after(producer, edit.nodes)
    return list(split.outputs)
