"""Decomposed Gelu computes the same."""

from __future__ import annotations

from tests.helpers.graphs import count_operators, is_close, run_graph


def test_gelu_to_erf(traced):
    from bge_export.passes import GeluToErf

    model = traced("cls")
    expected = run_graph(model)
    assert GeluToErf()(model).modified
    assert count_operators(model)["Gelu"] == 0
    assert count_operators(model)["Erf"] == 3
    assert is_close(run_graph(model), expected)
    assert not GeluToErf()(model).modified
