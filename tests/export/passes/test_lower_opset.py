"""An older opset is declared only if all operators have it."""

from __future__ import annotations

import pytest

from tests.helpers.graphs import is_close, run_graph


def test_lower_opset_refuses_operators_of_newer_opsets(traced):
    from bge_export.passes import AttentionToMatMul, GeluToErf, LowerOpset

    model = traced("cls")
    expected = run_graph(model)
    with pytest.raises(Exception, match="Attention of opset 23 has no equal in opset 18"):
        LowerOpset(18)(traced("cls"))
    for graph_pass in (AttentionToMatMul(), GeluToErf(), LowerOpset(18)):
        graph_pass(model)
    assert model.opset_imports[""] == 18
    assert is_close(run_graph(model), expected)
