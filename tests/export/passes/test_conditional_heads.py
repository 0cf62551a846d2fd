"""Heads are computed on request only, with the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.bundles import TINY_M3, keep_traces
from tests.helpers.graphs import count_operators


def test_conditional_heads(tiny_m3_checkpoint: Path):
    import onnx_ir as ir
    import onnxruntime as ort

    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder import exporter
    from bge_export.encoder.load import load_encoder, load_heads
    from bge_export.encoder.pooling import PooledEncoder
    from bge_export.passes import ChunkFeedForward, ConditionalHeads, PruneLastLayer

    keep_traces()
    checkpoint = inspect_checkpoint(
        tiny_m3_checkpoint, source="tiny", pooling="cls", model_class="encoder-only-m3"
    )
    heads = load_heads(checkpoint, width=48)
    encoder = load_encoder(checkpoint)
    wrapped = PooledEncoder(encoder, pooling="cls", token_types=False, heads=heads)
    model = exporter.trace(wrapped, max_length=TINY_M3.max_length)
    model.graph.outputs[:] = [v for v in model.graph.outputs if v.name != "last_hidden_state"]
    for graph_pass in (PruneLastLayer(), ChunkFeedForward(10)):  # the last layer is a loop, too
        graph_pass(model)

    def results(**more):
        content = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
        ids = np.arange(5, 49).reshape(2, 22)
        names = ["sentence_embedding", "token_weights", "colbert_vecs"]
        return session.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids)} | more)

    expected = results()
    assert ConditionalHeads()(model).modified
    assert (count_operators(model)["If"], count_operators(model)["Relu"]) == (1, 0)
    for found, plain in zip(results(compute_heads=np.array(True)), expected, strict=True):
        np.testing.assert_array_equal(found, plain)
    dense, weights, vectors = results(compute_heads=np.array(False))
    np.testing.assert_array_equal(dense, expected[0])
    assert (weights.shape, vectors.shape) == ((0, 0), (0, 0, 48))


def test_a_model_without_heads_is_unchanged(traced):
    from bge_export.passes import ConditionalHeads

    assert not ConditionalHeads()(traced("cls")).modified


@pytest.mark.parametrize("max_length", [128, 8192])
def test_every_model_with_heads_has_a_branch_for_them(max_length: int):
    from bge_export.passes import ConditionalHeads
    from bge_export.targets import CPU, PORTABLE, for_model

    def branches(target, *, heads: bool) -> bool:
        passes = for_model(target, max_length, heads=heads).passes()
        return any(isinstance(graph_pass, ConditionalHeads) for graph_pass in passes)

    assert branches(CPU, heads=True)
    assert not branches(PORTABLE, heads=True)  # other tools know no such input
    assert for_model(CPU, 128, heads=False) is CPU
