"""Attention over texts that lie behind each other, none of them padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bge_export.graph_builder import GraphBuilder, is_op, unique_name
from bge_export.passes.attention.attention_to_matmul import spell_out
from bge_export.passes.attention.heads import joined_of, sources_of, split_of
from bge_runtime.bundle import CUMULATIVE_LENGTHS, TOKEN_OFFSET, UNIFORM_BATCH

CONTRIB = "com.microsoft"
PACKED, EVEN = "PackedMultiHeadAttention", "MultiHeadAttention"


class PackAttention(ir.passes.InPlacePass):
    """Replace Attention by ONNX Runtime's PackedMultiHeadAttention.

    It is told where each text begins, and lets no token see another text. With queries, keys
    and values apart and without a bias the CUDA provider gives them to FlashAttention as they
    are (``packed_multihead_attention.cc``).

    With ``even`` it is MultiHeadAttention, for texts that all have one length: cuDNN's attention,
    which on a Hopper GPU takes two thirds of the time, and no wait for the GPU in each layer to
    see whether the input is right. On an H100 bge-large took 1.4 ms for 1.6 as a CUDA graph, with
    a text of 8 tokens, and 11.3 for 12.1 with 16 of 512, 22.7 for 23.5 with 32.

    Requires: one row of tokens, of which the input ``cumulative_sequence_length`` says where
    the texts end; ``Attention`` as `BlockwiseAttention` wants it.
    Changes: those Attention nodes, whose masks go. There is a further input ``token_offset``:
    the operator reads batch and longest text off its shape ``(batch, longest)``, and other
    kernels than that of FlashAttention read it. With ``even`` it is called ``even_batch``.
    """

    def __init__(self, *, even: bool = False) -> None:
        """Choose which texts it is for."""
        super().__init__()
        self._even = even

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass.

        Raises:
            ValueError: If an Attention node is of another form.
        """
        graph = model.graph
        nodes = [node for node in graph if is_op(node, "Attention")]
        lengths = next(value for value in graph.inputs if value.name == CUMULATIVE_LENGTHS)
        offsets = ir.val(
            UNIFORM_BATCH if self._even else TOKEN_OFFSET, ir.DataType.INT32, ["batch", "longest"]
        )
        graph.inputs.append(offsets)
        model.opset_imports[CONTRIB] = 1
        in_texts = None  # the shape (batch, sequence, width), which is that of all layers
        for node in nodes:
            sources, joined, split = sources_of(node), joined_of(node), split_of(node.inputs[0])
            plain = (
                node.attributes.get_int("is_causal", 0) == 0
                and node.attributes.get_float("softcap", 0.0) == 0.0
                and all(value is None for value in node.inputs[4:])
            )
            if sources is None or joined is None or split is None or not plain:
                raise ValueError(f"Attention node {node.name!r} is of a form that cannot be packed")
            heads, width = split
            edit = GraphBuilder()
            flat, row, whole = (
                edit.constant(np.array(shape, np.int64), unique_name(graph, f"packed.{name}"))
                for name, shape in (
                    ("flat", [-1, heads * width]),
                    ("row", [1, -1, heads * width]),
                    ("width", [heads * width]),
                )
            )
            if self._even and in_texts is None:
                in_texts = edit.op("Concat", [edit.op("Shape", [offsets]), whole], {"axis": 0})
            split_up = flat if in_texts is None else in_texts
            attributes: dict[str, int | float] = {"num_heads": heads}
            if "scale" in node.attributes:
                attributes["scale"] = node.attributes.get_float("scale", 1.0)
            inputs = [edit.op("Reshape", [source, split_up]) for source in sources]
            name, more = (EVEN, []) if self._even else (PACKED, [None, offsets, lengths])
            attended = edit.op(name, [*inputs, *more], attributes, domain=CONTRIB)
            shape = ["batch", "longest"] if self._even else ["tokens"]
            for value in (*inputs, attended):
                value.type = ir.TensorType(ir.DataType.FLOAT)
                value.shape = ir.Shape([*shape, heads * width])
            result = edit.op("Reshape", [attended, row])
            result.type, result.shape = joined.type, joined.shape
            edit.insert_before(node)
            ir.convenience.replace_all_uses_with(joined, result)
            joining = joined.producer()
            assert joining is not None
            assert joining.inputs[0] is not None
            turning = joining.inputs[0].producer()
            assert turning is not None
            graph.remove([joining, turning, node], safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))


class DecomposePackedAttention(ir.passes.InPlacePass):
    """Replace PackedMultiHeadAttention by operators that a CPU has, to prove a graph there.

    Requires: what `PackAttention` gives.
    Changes: those nodes. They hold a score for each pair of tokens of all texts: for a few
    short ones.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass."""
        nodes = [node for node in model.graph.all_nodes() if node.op_type == PACKED]
        masks: dict[ir.Graph, ir.Value] = {}
        for node in nodes:
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            if graph not in masks:
                stem = f"same_text.{len(masks)}"
                masks[graph] = _same_text(model.graph.inputs, node, stem=stem)
            mask = masks[graph]
            edit = GraphBuilder()
            heads = node.attributes.get_int("num_heads")
            query = node.inputs[0]
            assert query is not None
            assert query.shape is not None
            whole = query.shape[1]
            assert isinstance(whole, int)
            split, join = (
                edit.constant(np.array(shape, np.int64), name)
                for name, shape in (
                    ("split", [1, -1, heads, whole // heads]),
                    ("join", [-1, whole]),
                )
            )
            turn = {"perm": [0, 2, 1, 3]}
            in_heads = []
            for source in node.inputs[:3]:
                turned = edit.op("Transpose", [edit.op("Reshape", [source, split])], turn)
                # Scores and their softmax are in float32 in FlashAttention, too.
                wide = edit.op("Cast", [turned], {"to": ir.DataType.FLOAT})
                wide.type = ir.TensorType(ir.DataType.FLOAT)
                wide.shape = ir.Shape([1, heads, "tokens", whole // heads])
                in_heads.append(wide)
            scale = [node.attributes["scale"]] if "scale" in node.attributes else []
            attention = ir.Node("", "Attention", [*in_heads, mask], scale, name=node.name)
            attended = spell_out(edit, graph, attention)
            turned = edit.op("Transpose", [attended], turn)
            narrow = edit.op("Cast", [turned], {"to": query.dtype or ir.DataType.FLOAT})
            result = edit.op("Reshape", [narrow, join])
            result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
            _insert_named(edit, node, f"{node.outputs[0].name}.spelled")
            ir.convenience.replace_all_uses_with(node.outputs[0], result)
            graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _same_text(inputs: Sequence[ir.Value], before: ir.Node, *, stem: str) -> ir.Value:
    """Tell of each pair of tokens whether they are of one text.

    Shape: ``(1, 1, tokens, tokens)``.
    """
    edit = GraphBuilder()

    def ints(name: str, *numbers: int) -> ir.Value:
        shaped = numbers[0] if len(numbers) == 1 else numbers
        return edit.constant(np.array(shaped, np.int64), name)

    lengths = next(value for value in inputs if value.name == CUMULATIVE_LENGTHS)
    ids = next(value for value in inputs if value.name == "input_ids")
    zero, one = ints("zero", 0), ints("one", 1)
    count = edit.op("Squeeze", [edit.op("Shape", [ids])])
    tokens = edit.op("Unsqueeze", [edit.op("Range", [zero, count, one]), one])
    ends = edit.op("Cast", [lengths], {"to": ir.DataType.INT64})
    over = edit.op("Cast", [edit.op("GreaterOrEqual", [tokens, ends])], {"to": ir.DataType.INT64})
    axis = edit.constant(np.array([1], np.int64), "axis")
    text = edit.op("ReduceSum", [over, axis], {"keepdims": 0})
    same = edit.op("Equal", [edit.op("Unsqueeze", [text, one]), edit.op("Unsqueeze", [text, zero])])
    first = edit.constant(np.array([0, 1], np.int64), "first")
    mask = edit.op("Unsqueeze", [same, first])
    mask.type = ir.TensorType(ir.DataType.BOOL)
    _insert_named(edit, before, stem)
    return mask


def _insert_named(edit: GraphBuilder, before: ir.Node, stem: str) -> None:
    # In a branch names that come by themselves may be those of what is around it.
    made = (value for node in edit.nodes for value in node.outputs)
    for number, value in enumerate((*edit.initializers, *made)):
        value.name = f"{stem}.{number}"
    edit.insert_before(before)
