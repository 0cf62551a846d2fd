"""The trace has the nodes that passes expect, and nothing of this machine."""

from __future__ import annotations

from tests.helpers.bundles import ROOT
from tests.helpers.graphs import count_operators


def test_trace_has_one_attention_node_for_each_layer(traced):
    counts = count_operators(traced("cls"))
    assert counts["Attention"] == 3
    assert counts["Gelu"] == 3


def test_trace_contains_no_paths_of_this_machine(traced):
    import onnx_ir as ir

    serialized = ir.to_proto(traced("cls")).SerializeToString()
    for trail in (str(ROOT), "site-packages", "def forward"):
        assert trail.encode() not in serialized
