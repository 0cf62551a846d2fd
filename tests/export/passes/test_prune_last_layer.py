"""A last layer of one token computes the same."""

from __future__ import annotations

import pytest

from tests.helpers.graphs import is_close, run_graph


@pytest.mark.parametrize("masked_first", [False, True])
def test_prune_last_layer(traced, masked_first: bool):
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from bge_export.passes import AttentionToMatMul, BroadcastMask, PruneLastLayer

    model = traced("cls")
    expected = run_graph(model)
    model.graph.outputs.pop(0)  # last_hidden_state
    if masked_first:
        BroadcastMask()(model)
    assert PruneLastLayer()(model).modified
    RemoveUnusedNodesPass()(model)
    AttentionToMatMul()(model)
    assert is_close(run_graph(model), expected)
    assert {value.name for value in model.graph.outputs} == {"sentence_embedding"}
    # The feed-forward layers see every token, the last one a single row a text.
    model.graph.outputs.extend(node.inputs[0] for node in model.graph if node.op_type == "Gelu")
    widths = [run_graph(model, value.name).shape for value in model.graph.outputs[1:]]
    assert widths == [(4, 33, 96), (4, 33, 96), (4, 1, 96)]


def test_mean_pooling_is_unchanged(traced):
    from bge_export.passes import PruneLastLayer

    assert not PruneLastLayer()(traced("mean")).modified
