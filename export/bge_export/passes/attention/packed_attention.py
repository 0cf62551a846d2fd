"""Attention over packed texts: all in one row, without padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, find_free_name, is_op
from bge_export.passes.attention.attention_to_matmul import decompose_attention
from bge_export.passes.attention.heads import find_joined, find_sources, find_split
from bge_runtime.bundle import CUMULATIVE_LENGTHS, TOKEN_OFFSET, UNIFORM_BATCH

CONTRIB = "com.microsoft"
_PACKED, _UNIFORM = "PackedMultiHeadAttention", "MultiHeadAttention"


class PackAttention(ir.passes.InPlacePass):
    """Replace Attention by ONNX Runtime's PackedMultiHeadAttention.

    This operator knows where each text begins, so no token sees another text. With separate
    queries, keys and values and no bias, the CUDA provider passes them to FlashAttention unchanged
    (``packed_multihead_attention.cc``).

    With ``uniform_length`` the operator is MultiHeadAttention, for texts of one length. It uses
    cuDNN's attention, which on a Hopper GPU takes two thirds of the time, and does not wait for the
    GPU in each layer to validate the input. On an H100, as a CUDA graph, bge-large took 1.4 instead
    of 1.6 ms for a text of 8 tokens, 11.3 instead of 12.1 ms for 16 texts of 512 tokens, and 22.7
    instead of 23.5 ms for 32.

    Requires: one row of tokens; an input ``cumulative_sequence_length`` with the ends of the texts;
    ``Attention`` as in `BlockwiseAttention`.
    Changes: those Attention nodes, whose masks are removed. Adds the input ``token_offset``, named
    ``even_batch`` with ``uniform_length``: the operator takes the batch size and the longest length
    from its shape ``(batch, longest)``, and kernels other than FlashAttention read it.
    """

    def __init__(self, *, uniform_length: bool = False) -> None:
        """Choose whether all texts have one length."""
        super().__init__()
        self._uniform_length = uniform_length

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ValueError: If an Attention node has another form.
        """
        graph = model.graph
        nodes = [node for node in graph if is_op(node, "Attention")]
        lengths = next(value for value in graph.inputs if value.name == CUMULATIVE_LENGTHS)
        offsets = ir.val(
            UNIFORM_BATCH if self._uniform_length else TOKEN_OFFSET,
            ir.DataType.INT32,
            ["batch", "longest"],
        )
        graph.inputs.append(offsets)
        model.opset_imports[CONTRIB] = 1
        in_texts = None  # shape (batch, sequence, width), the same in all layers
        for node in nodes:
            sources, joined, split = (
                find_sources(node),
                find_joined(node),
                find_split(node.inputs[0]),
            )
            plain = (
                node.attributes.get_int("is_causal", 0) == 0
                and node.attributes.get_float("softcap", 0.0) == 0.0
                and all(value is None for value in node.inputs[4:])
            )
            if sources is None or joined is None or split is None or not plain:
                raise ValueError(f"Attention node {node.name!r} has a form that cannot be packed")
            heads, width = split
            builder = GraphBuilder()
            flat, row, whole = (
                builder.constant(np.array(shape, np.int64), find_free_name(graph, f"packed.{name}"))
                for name, shape in (
                    ("flat", [-1, heads * width]),
                    ("row", [1, -1, heads * width]),
                    ("width", [heads * width]),
                )
            )
            if self._uniform_length and in_texts is None:
                in_texts = builder.op(
                    "Concat", [builder.op("Shape", [offsets]), whole], {"axis": 0}
                )
            target_shape = flat if in_texts is None else in_texts
            attributes: dict[str, int | float] = {"num_heads": heads}
            if "scale" in node.attributes:
                attributes["scale"] = node.attributes.get_float("scale", 1.0)
            inputs = [builder.op("Reshape", [source, target_shape]) for source in sources]
            name, more = (
                (_UNIFORM, []) if self._uniform_length else (_PACKED, [None, offsets, lengths])
            )
            attended = builder.op(name, [*inputs, *more], attributes, domain=CONTRIB)
            shape = ["batch", "longest"] if self._uniform_length else ["tokens"]
            for value in (*inputs, attended):
                value.type = ir.TensorType(ir.DataType.FLOAT)
                value.shape = ir.Shape([*shape, heads * width])
            result = builder.op("Reshape", [attended, row])
            result.type, result.shape = joined.type, joined.shape
            builder.insert_before(node)
            ir.convenience.replace_all_uses_with(joined, result)
            reshape = joined.producer()
            assert reshape is not None
            assert reshape.inputs[0] is not None
            transpose = reshape.inputs[0].producer()
            assert transpose is not None
            graph.remove([reshape, transpose, node], safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))


class DecomposePackedAttention(ir.passes.InPlacePass):
    """Replace PackedMultiHeadAttention by operators that CPUs support, to check a graph there.

    Requires: a graph of `PackAttention`.
    Changes: those nodes. The new ones store a score for each pair of tokens of all texts, so they
    are for a few short texts only.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        nodes = [node for node in model.graph.all_nodes() if node.op_type == _PACKED]
        masks: dict[ir.Graph, ir.Value] = {}
        for node in nodes:
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            if graph not in masks:
                stem = f"same_text.{len(masks)}"
                masks[graph] = _mask_other_texts(model.graph.inputs, node, stem=stem)
            mask = masks[graph]
            builder = GraphBuilder()
            heads = node.attributes.get_int("num_heads")
            query = node.inputs[0]
            assert query is not None
            assert query.shape is not None
            whole = query.shape[1]
            assert isinstance(whole, int)
            split, join = (
                builder.constant(np.array(shape, np.int64), name)
                for name, shape in (
                    ("split", [1, -1, heads, whole // heads]),
                    ("join", [-1, whole]),
                )
            )
            turn = {"perm": [0, 2, 1, 3]}
            in_heads = []
            for source in node.inputs[:3]:
                transposed = builder.op("Transpose", [builder.op("Reshape", [source, split])], turn)
                # FlashAttention computes scores and softmax in float32 too.
                wide = builder.op("Cast", [transposed], {"to": ir.DataType.FLOAT})
                wide.type = ir.TensorType(ir.DataType.FLOAT)
                wide.shape = ir.Shape([1, heads, "tokens", whole // heads])
                in_heads.append(wide)
            scale = [node.attributes["scale"]] if "scale" in node.attributes else []
            attention = ir.Node("", "Attention", [*in_heads, mask], scale, name=node.name)
            attended = decompose_attention(builder, graph, attention)
            transposed = builder.op("Transpose", [attended], turn)
            narrow = builder.op("Cast", [transposed], {"to": query.dtype or ir.DataType.FLOAT})
            result = builder.op("Reshape", [narrow, join])
            result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
            _insert_named(builder, node, f"{node.outputs[0].name}.decomposed")
            ir.convenience.replace_all_uses_with(node.outputs[0], result)
            graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _mask_other_texts(inputs: Sequence[ir.Value], before: ir.Node, *, stem: str) -> ir.Value:
    """Return a mask that is true for each pair of tokens of one text.

    Shape: ``(1, 1, tokens, tokens)``.
    """
    builder = GraphBuilder()

    def ints(name: str, *numbers: int) -> ir.Value:
        shaped = numbers[0] if len(numbers) == 1 else numbers
        return builder.constant(np.array(shaped, np.int64), name)

    lengths = next(value for value in inputs if value.name == CUMULATIVE_LENGTHS)
    ids = next(value for value in inputs if value.name == "input_ids")
    zero, one = ints("zero", 0), ints("one", 1)
    count = builder.op("Squeeze", [builder.op("Shape", [ids])])
    tokens = builder.op("Unsqueeze", [builder.op("Range", [zero, count, one]), one])
    ends = builder.op("Cast", [lengths], {"to": ir.DataType.INT64})
    over = builder.op(
        "Cast", [builder.op("GreaterOrEqual", [tokens, ends])], {"to": ir.DataType.INT64}
    )
    axis = builder.constant(np.array([1], np.int64), "axis")
    text = builder.op("ReduceSum", [over, axis], {"keepdims": 0})
    same = builder.op(
        "Equal", [builder.op("Unsqueeze", [text, one]), builder.op("Unsqueeze", [text, zero])]
    )
    first = builder.constant(np.array([0, 1], np.int64), "first")
    mask = builder.op("Unsqueeze", [same, first])
    mask.type = ir.TensorType(ir.DataType.BOOL)
    _insert_named(builder, before, stem)
    return mask


def _insert_named(builder: GraphBuilder, before: ir.Node, stem: str) -> None:
    # In a branch, automatic names may repeat those of the graph around it.
    made = (value for node in builder.nodes for value in node.outputs)
    for number, value in enumerate((*builder.initializers, *made)):
        value.name = f"{stem}.{number}"
    builder.insert_before(before)
