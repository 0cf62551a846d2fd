"""Decomposed attention computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.graphs import count_operators, is_close, run_graph


@pytest.mark.parametrize("masked_first", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_attention_to_matmul(traced, pooling: str, masked_first: bool):
    from bge_export.passes import AttentionToMatMul, BroadcastMask

    expected = run_graph(traced(pooling))
    model = traced(pooling)
    if masked_first:
        assert BroadcastMask()(model).modified
    assert AttentionToMatMul()(model).modified
    assert count_operators(model)["Attention"] == 0
    assert is_close(run_graph(model), expected)
    assert not AttentionToMatMul()(model).modified


def test_attention_with_a_boolean_mask(traced):
    import onnx_ir as ir

    from bge_export.graph_builder import GraphBuilder
    from bge_export.passes import AttentionToMatMul

    model = traced("cls")
    expected = run_graph(model)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    mask = attentions[0].inputs[3]
    if mask.dtype != ir.DataType.BOOL:  # as it is with transformers 5
        edit = GraphBuilder()
        half = edit.constant(np.float32(-0.5), "half")
        keep = edit.op("Greater", [mask, half])
        keep.type = ir.TensorType(ir.DataType.BOOL)
        edit.insert_before(attentions[0])
        for node in attentions:
            node.replace_input_with(3, keep)
    AttentionToMatMul()(model)
    assert is_close(run_graph(model), expected)


def test_causal_attention_is_refused(traced):
    import onnx_ir as ir

    from bge_export.passes import AttentionToMatMul

    model = traced("cls")
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    with pytest.raises(Exception, match="cannot be lowered"):
        AttentionToMatMul()(model)
