"""A folded bias of queries computes the same, or nothing changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.graphs import count_operators, is_close, run_graph


def norms_before_queries(model) -> list:
    """Return the norms whose output the matrices of queries read."""
    found = []
    for node in model.graph:
        if node.op_type == "Attention":
            while node.op_type != "MatMul":
                node = node.inputs[0].producer()  # noqa: PLW2901  # climbs
            found.append(node.inputs[0].producer())
    return found


def set_constant(value, array: np.ndarray) -> None:
    import onnx_ir as ir

    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)


@pytest.mark.parametrize("bias", [0.0, 0.2])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_fold_query_bias(traced, pooling: str, bias: float):
    """With a small bias the norm's has to be moved, with a large one it stays as it is."""
    from bge_export.graph_builder import read_constant
    from bge_export.passes import FoldQueryBias

    model = traced(pooling)
    for norm in norms_before_queries(model):
        scattered = np.random.default_rng(0).normal(bias, 0.01, norm.inputs[2].shape[0])
        set_constant(norm.inputs[2], scattered)
    biases = [read_constant(norm.inputs[2]) for norm in norms_before_queries(model)]
    expected, before = run_graph(model), count_operators(model)
    assert FoldQueryBias()(model).modified
    after = count_operators(model)
    assert before["Add"] - after["Add"] == after["Attention"] > 0
    assert is_close(run_graph(model), expected)
    for norm, old in zip(norms_before_queries(model), biases, strict=True):
        moved = np.abs(read_constant(norm.inputs[2]) - old).max()
        assert 0.01 < moved < 0.3 if bias == 0 else moved == 0
    assert not FoldQueryBias()(model).modified


@pytest.mark.parametrize(
    "change", ["no gain", "a tiny gain", "two that cancel", "another reader", "a residual scaled"]
)
def test_what_cannot_be_folded_exactly_is_unchanged(traced, change: str):
    import onnx_ir as ir

    from bge_export.graph_builder import read_constant
    from bge_export.passes import FoldQueryBias

    model = traced("cls")
    for norm in norms_before_queries(model):
        if change == "another reader":
            other = ir.node("Neg", [norm.outputs[0]])
            model.graph.insert_after(norm, other)
        elif change == "a residual scaled":
            for node in list(norm.outputs[0].consumers()):
                if node.op_type == "Add":
                    (end,) = (x.producer() for x in node.inputs if x is not norm.outputs[0])
                    end.op_type = "Mul"
        elif change == "two that cancel":
            gain, bias = (read_constant(norm.inputs[index]).copy() for index in (1, 2))
            gain[:2], bias[:2] = 1e-4, (0.5, -0.5)
            set_constant(norm.inputs[1], gain)
            set_constant(norm.inputs[2], bias)
        else:
            gain = read_constant(norm.inputs[1]).copy()
            gain[3] = 0 if change == "no gain" else 1e-9
            set_constant(norm.inputs[1], gain)
            set_constant(norm.inputs[2], np.zeros_like(gain))
    assert not FoldQueryBias()(model).modified


@given(seed=st.integers(0, 999), count=st.integers(2, 64), mean=st.floats(-2, 2))
def test_a_norms_bias_moves_only_as_far_as_rounding_requires(seed: int, count: int, mean: float):
    from bge_export.passes.attention.fold_query_bias import _compute_share

    ratio = np.random.default_rng(seed).normal(mean, 0.3, count)

    def lacks(share: float) -> float:
        moved = ratio + share
        return float(np.sqrt(count + moved @ moved) - abs(moved.sum()))

    share = _compute_share(ratio)
    assert lacks(share) <= 1e-9 * count
    # Half of it would not do; and where nothing is lacking nothing moves.
    assert lacks(share / 2) > -1e-9 if share else lacks(0) <= 0
    assert share * ratio.sum() >= 0
