"""One row of the mask for each text computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.graphs import is_close, run_graph


def test_broadcast_mask_removes_the_square(traced):
    from bge_export.passes import AttentionToMatMul, BroadcastMask

    model = traced("mean")
    expected = run_graph(model)
    assert BroadcastMask()(model).modified
    mask = next(node for node in model.graph if node.op_type == "Attention").inputs[3]
    assert mask.shape[2] == 1
    AttentionToMatMul()(model)  # ONNX Runtime's own Attention wants the square
    assert is_close(run_graph(model), expected)
    assert not BroadcastMask()(model).modified


@pytest.mark.parametrize("change", ["a bias that is learned", "another input"])
def test_a_mask_of_more_than_padding_is_unchanged(traced, change: str):
    import onnx_ir as ir

    from bge_export.graph_builder import GraphBuilder
    from bge_export.passes import BroadcastMask

    model = traced("mean")
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    edit = GraphBuilder()
    if change == "another input":
        bias = ir.Value(name="bias", type=ir.TensorType(ir.DataType.FLOAT))
        model.graph.inputs.append(bias)
    else:
        bias = edit.constant(np.zeros((7, 7), np.float32), "learned")
    biased = edit.op("Add", [attentions[0].inputs[3], bias])
    edit.insert_before(attentions[0])
    for node in attentions:
        node.replace_input_with(3, biased)
    assert not BroadcastMask()(model).modified
