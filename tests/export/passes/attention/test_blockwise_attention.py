"""Attention block by block computes the same, and only without padding."""

from __future__ import annotations

import pytest

from tests.helpers.graphs import count_operators, is_close, run_graph


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_blockwise_attention(traced, pooling: str):
    from bge_export.passes import AttentionToMatMul, BlockwiseAttention

    expected = {padded: run_graph(traced(pooling), padded=padded) for padded in (False, True)}
    model = traced(pooling)
    assert BlockwiseAttention()(model).modified
    assert count_operators(model)["Attention"] == 0
    assert count_operators(model)["If"] == 3
    assert count_operators(model)["Split"] == 3 * 3
    for padded, vectors in expected.items():
        assert is_close(run_graph(model, padded=padded), vectors)
    assert not BlockwiseAttention()(model).modified
    assert not AttentionToMatMul()(model).modified

    # The mask must not be ignored where there is one, and blocks be used where there is none.
    for node in model.graph:
        if node.op_type == "If":
            branches = node.attributes
            branches["else_branch"], branches["then_branch"] = (
                ir_branch(branches["then_branch"], "else_branch"),
                ir_branch(branches["else_branch"], "then_branch"),
            )
    assert not is_close(run_graph(model, padded=True), expected[True])
    assert is_close(run_graph(model, padded=False), expected[False])


def ir_branch(attribute, name: str):
    import onnx_ir as ir

    return ir.AttrGraph(name, attribute.as_graph())


def test_attention_with_one_query_is_unchanged(traced):
    from bge_export.passes import BlockwiseAttention, BroadcastMask, PruneLastLayer

    model = traced("cls")
    BroadcastMask()(model)
    PruneLastLayer()(model)
    BlockwiseAttention()(model)
    assert count_operators(model)["Attention"] == 1
    assert count_operators(model)["If"] == 3  # the hidden states are an output, too
