"""Feed-forward layers over chunks compute the same."""

from __future__ import annotations

from tests.helpers.graphs import count_operators, is_close, run_graph


def test_chunk_feed_forward(traced):
    from bge_export.passes import ChunkFeedForward

    expected = {padded: run_graph(traced("mean"), padded=padded) for padded in (False, True)}
    for tokens in (1, 10, 11, 33, 40):  # of 33
        model = traced("mean")
        before = count_operators(model)
        assert ChunkFeedForward(tokens)(model).modified
        after = count_operators(model)
        assert (after["Loop"], after["Gelu"]) == (before["Gelu"], 0)
        for padded, vectors in expected.items():
            assert is_close(run_graph(model, padded=padded), vectors)
        assert not ChunkFeedForward(tokens)(model).modified


def test_a_layer_with_one_token_for_each_text_is_not_chunked(traced):
    from bge_export.passes import (
        AttentionToMatMul,
        BroadcastMask,
        ChunkFeedForward,
        PruneLastLayer,
    )

    model = traced("cls")
    expected = run_graph(model)
    BroadcastMask()(model)
    PruneLastLayer()(model)
    AttentionToMatMul()(model)
    alone = count_operators(model)["Gelu"]
    ChunkFeedForward(10)(model)
    # The hidden states are an output, too: the last layer is there twice.
    assert (count_operators(model)["Loop"], count_operators(model)["Gelu"]) == (alone - 1, 1)
    assert is_close(run_graph(model), expected)
