"""Each pass changes what it says, and not what the graph computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.bundles import ROOT, TINY_M3, keep_traces


@pytest.fixture(scope="module")
def traced(tiny_checkpoint: Path) -> Callable[[str], object]:
    """The tiny BERT at opset 23, by pooling. Clone it before changing it."""
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder import exporter
    from bge_export.encoder.load import load_encoder
    from bge_export.encoder.pooling import PooledEncoder

    keep_traces()
    made = {}

    def model(pooling: str):
        if pooling not in made:
            checkpoint = inspect_checkpoint(tiny_checkpoint, source="tiny", pooling=pooling)
            encoder = load_encoder(checkpoint)
            wrapped = PooledEncoder(encoder, pooling=pooling, token_types=True)
            made[pooling] = exporter.trace(wrapped, max_length=512)
        return made[pooling].clone()

    return model


def run(model, output: str = "sentence_embedding", *, padded: bool = True) -> np.ndarray:
    """Run a graph on a batch."""
    import onnx_ir as ir
    import onnxruntime as ort

    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 9000, (4, 33))
    lengths = [[33], [20], [7], [2]] if padded else [[33]] * 4
    mask = (np.arange(33) < np.array(lengths)).astype(np.int64)
    feeds = {
        "input_ids": np.where(mask, ids, 0),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
    }
    return session.run([output], feeds)[0]


def operators(model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    # Vectors of norm about 7; another order of summing moves them by 1e-6.
    return float(np.abs(a - b).max()) < 1e-5


def test_trace_says_attention_once_a_layer(traced):
    counts = operators(traced("cls"))
    assert counts["Attention"] == 3
    assert counts["Gelu"] == 3


def test_trace_carries_no_paths_of_this_machine(traced):
    import onnx_ir as ir

    serialized = ir.to_proto(traced("cls")).SerializeToString()
    for trail in (str(ROOT), "site-packages", "def forward"):
        assert trail.encode() not in serialized


def test_heads_on_request(tiny_m3_checkpoint: Path):
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
    assert (operators(model)["If"], operators(model)["Relu"]) == (1, 0)
    for found, plain in zip(results(compute_heads=np.array(True)), expected, strict=True):
        np.testing.assert_array_equal(found, plain)
    dense, weights, vectors = results(compute_heads=np.array(False))
    np.testing.assert_array_equal(dense, expected[0])
    assert (weights.shape, vectors.shape) == ((0, 0), (0, 0, 48))


@pytest.mark.parametrize("masked_first", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_attention_to_matmul(traced, pooling: str, masked_first: bool):
    from bge_export.passes import AttentionToMatMul, BroadcastMask

    expected = run(traced(pooling))
    model = traced(pooling)
    if masked_first:
        assert BroadcastMask()(model).modified
    assert AttentionToMatMul()(model).modified
    assert operators(model)["Attention"] == 0
    assert close(run(model), expected)
    assert not AttentionToMatMul()(model).modified


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_attention_in_blocks(traced, pooling: str):
    from bge_export.passes import AttentionToMatMul, BlockwiseAttention

    expected = {padded: run(traced(pooling), padded=padded) for padded in (False, True)}
    model = traced(pooling)
    assert BlockwiseAttention()(model).modified
    assert operators(model)["Attention"] == 0
    assert operators(model)["If"] == 3
    assert operators(model)["Split"] == 3 * 3
    for padded, vectors in expected.items():
        assert close(run(model, padded=padded), vectors)
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
    assert not close(run(model, padded=True), expected[True])
    assert close(run(model, padded=False), expected[False])


def test_feed_forward_in_parts(traced):
    from bge_export.passes import ChunkFeedForward

    expected = {padded: run(traced("mean"), padded=padded) for padded in (False, True)}
    for tokens in (1, 10, 11, 33, 40):  # of 33
        model = traced("mean")
        before = operators(model)
        assert ChunkFeedForward(tokens)(model).modified
        after = operators(model)
        assert (after["Loop"], after["Gelu"]) == (before["Gelu"], 0)
        for padded, vectors in expected.items():
            assert close(run(model, padded=padded), vectors)
        assert not ChunkFeedForward(tokens)(model).modified


def test_one_token_a_text_is_left_by_feed_forward_in_parts(traced):
    from bge_export.passes import (
        AttentionToMatMul,
        BroadcastMask,
        ChunkFeedForward,
        PruneLastLayer,
    )

    model = traced("cls")
    expected = run(model)
    BroadcastMask()(model)
    PruneLastLayer()(model)
    AttentionToMatMul()(model)
    alone = operators(model)["Gelu"]
    ChunkFeedForward(10)(model)
    # The hidden states are an output, too: the last layer is there twice.
    assert (operators(model)["Loop"], operators(model)["Gelu"]) == (alone - 1, 1)
    assert close(run(model), expected)


def test_heads_on_request_leaves_a_model_without_heads_alone(traced):
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


def ir_branch(attribute, name: str):
    import onnx_ir as ir

    return ir.AttrGraph(name, attribute.as_graph())


def test_one_query_is_left_to_the_other_pass(traced):
    from bge_export.passes import BlockwiseAttention, BroadcastMask, PruneLastLayer

    model = traced("cls")
    BroadcastMask()(model)
    PruneLastLayer()(model)
    BlockwiseAttention()(model)
    assert operators(model)["Attention"] == 1
    assert operators(model)["If"] == 3  # the hidden states are an output, too


def test_attention_with_a_boolean_mask(traced):
    import onnx_ir as ir

    from bge_export.graph_builder import GraphBuilder
    from bge_export.passes import AttentionToMatMul

    model = traced("cls")
    expected = run(model)
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
    assert close(run(model), expected)


def test_causal_attention_is_refused(traced):
    import onnx_ir as ir

    from bge_export.passes import AttentionToMatMul

    model = traced("cls")
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
    with pytest.raises(Exception, match="cannot be lowered"):
        AttentionToMatMul()(model)


def test_gelu_to_erf(traced):
    from bge_export.passes import GeluToErf

    model = traced("cls")
    expected = run(model)
    assert GeluToErf()(model).modified
    assert operators(model)["Gelu"] == 0
    assert operators(model)["Erf"] == 3
    assert close(run(model), expected)
    assert not GeluToErf()(model).modified


def test_lower_opset_needs_what_it_cannot_lower_gone(traced):
    from bge_export.passes import AttentionToMatMul, GeluToErf, LowerOpset

    model = traced("cls")
    expected = run(model)
    with pytest.raises(Exception, match="Attention of opset 23 has no equal in opset 18"):
        LowerOpset(18)(traced("cls"))
    for graph_pass in (AttentionToMatMul(), GeluToErf(), LowerOpset(18)):
        graph_pass(model)
    assert model.opset_imports[""] == 18
    assert close(run(model), expected)


def test_broadcast_mask_removes_the_square(traced):
    from bge_export.passes import AttentionToMatMul, BroadcastMask

    model = traced("mean")
    expected = run(model)
    assert BroadcastMask()(model).modified
    mask = next(node for node in model.graph if node.op_type == "Attention").inputs[3]
    assert mask.shape[2] == 1
    AttentionToMatMul()(model)  # ONNX Runtime's own Attention wants the square
    assert close(run(model), expected)
    assert not BroadcastMask()(model).modified


@pytest.mark.parametrize("change", ["a bias that is learned", "another input"])
def test_broadcast_mask_leaves_what_says_more_than_padding(traced, change: str):
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


@pytest.mark.parametrize("masked_first", [False, True])
def test_first_token_only(traced, masked_first: bool):
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from bge_export.passes import AttentionToMatMul, BroadcastMask, PruneLastLayer

    model = traced("cls")
    expected = run(model)
    model.graph.outputs.pop(0)  # last_hidden_state
    if masked_first:
        BroadcastMask()(model)
    assert PruneLastLayer()(model).modified
    RemoveUnusedNodesPass()(model)
    AttentionToMatMul()(model)
    assert close(run(model), expected)
    assert {value.name for value in model.graph.outputs} == {"sentence_embedding"}
    # The feed-forward layers see every token, the last one a single row a text.
    model.graph.outputs.extend(node.inputs[0] for node in model.graph if node.op_type == "Gelu")
    widths = [run(model, value.name).shape for value in model.graph.outputs[1:]]
    assert widths == [(4, 33, 96), (4, 33, 96), (4, 1, 96)]


def test_first_token_only_leaves_mean_pooling_alone(traced):
    from bge_export.passes import PruneLastLayer

    assert not PruneLastLayer()(traced("mean")).modified


def channels(rng: np.random.Generator, rows: int, columns: int, *, outlier: float) -> np.ndarray:
    values = rng.normal(size=(rows, columns)).astype(np.float32)
    values[:, 3] *= outlier
    return values


@given(
    seed=st.integers(0, 99),
    inputs=st.sampled_from([16, 48, 384]),
    outputs=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
)
def test_quantised_matrix_is_within_half_a_step(seed: int, inputs: int, outputs: int, scale: float):
    from bge_export.passes.precision.quantize_matrices import quantize

    matrix = np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32) * scale
    values, scales = quantize(matrix.astype(np.float32))
    assert values.dtype == np.int8
    assert len(matrix) % len(scales) == 0
    steps = np.repeat(scales, len(matrix) // len(scales), axis=0)
    assert (np.abs(values * steps - matrix) <= steps * 0.5001).all()


def test_smoothing_takes_an_outlier_out_of_what_is_rounded():
    from bge_export.passes.precision.quantize_matrices import smoothing_scales

    rng = np.random.default_rng(0)
    x, matrix = channels(rng, 50, 64, outlier=100), channels(rng, 20, 64, outlier=1).T
    scales = smoothing_scales(np.abs(x).max(axis=0), [matrix])
    assert np.isclose(np.log(scales).mean(), 0, atol=1e-5)
    assert np.allclose((x / scales) @ (matrix * scales[:, None]), x @ matrix, rtol=1e-3, atol=1e-2)
    spread = np.abs(x).max(axis=0)
    smoothed = spread / scales
    assert spread.max() / np.median(spread) > 50
    assert smoothed.max() / np.median(smoothed) < 15


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_quantize_matrices(traced, pooling: str, tmp_path: Path):
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from bge_export.encoder.calibration import watch_inputs
    from bge_export.passes import QuantizeMatrices
    from bge_export.targets import INT8

    model = traced(pooling)
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in INT8.outputs]
    for graph_pass in (*INT8.passes(), RemoveUnusedNodesPass()):
        graph_pass(model)
    before = run(model)
    tokens = [np.arange(5, 5 + length) * 7 for length in (2, 9, 33)]
    channels = watch_inputs(model, tokens, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert [output.name for output in model.graph.outputs] == list(INT8.outputs)
    assert QuantizeMatrices({x: seen.largest for x, seen in channels.items()})(model).modified
    counts = operators(model)
    assert counts["DequantizeLinear"] == 18  # six matrices a layer
    after = run(model)
    cosine = (
        (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    )
    assert 0.99 < cosine.min() < 0.999999


def biased_product(rng: np.random.Generator, inputs: int, outputs: int):
    """``Relu(x @ matrix + bias)`` as a graph, with the two."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    matrix = rng.normal(size=(inputs, outputs)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["product"]),
        helper.make_node("Add", ["bias", "product"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["sentence_embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    return model, matrix, bias


def run_product(model, x: np.ndarray) -> np.ndarray:
    import onnx_ir as ir
    import onnxruntime as ort

    content = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_round_products_rounds_as_pytorch_does():
    import torch

    from bge_export.passes import RoundProducts

    rng = np.random.default_rng(0)
    model, matrix, bias = biased_product(rng, 64, 8)
    x = rng.normal(size=(20, 64)).astype(np.float32)
    assert RoundProducts()(model).modified

    def rounded(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).bfloat16().float()

    total = rounded(x) @ rounded(matrix.astype(np.float16).astype(np.float32)) + rounded(bias)
    expected = total.bfloat16().float().relu().numpy()
    found = run_product(model, x)
    # Another order of summing may turn over what lies between two numbers in bf16.
    assert (found == expected).mean() > 0.95
    np.testing.assert_allclose(found, expected, rtol=2**-7)
    assert np.abs(found - np.maximum(x @ matrix + bias, 0)).max() > 1e-3


@given(seed=st.integers(0, 99), common=st.sampled_from([0.0, 1.0, 30.0]))
def test_corrected_biases_keep_the_mean_of_a_product(seed: int, common: float):
    from bge_export.passes import CorrectBiases
    from bge_export.passes.precision.bf16_products import stored_in_bf16

    rng = np.random.default_rng(seed)
    model, matrix, bias = biased_product(rng, 48, 8)
    x = rng.normal(size=(30, 48)).astype(np.float32) + common
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    assert CorrectBiases({product.inputs[0]: x.mean(axis=0)})(model).modified
    corrected = model.graph.initializers["bias.for_bf16"].const_value.numpy()
    np.testing.assert_allclose(
        (x @ stored_in_bf16(matrix) + corrected).mean(axis=0),
        (x @ matrix + bias).mean(axis=0),
        atol=1e-4 * (1 + common),
    )


def test_corrected_biases_leave_alone_what_nobody_watched():
    from bge_export.passes import CorrectBiases

    model, _, _ = biased_product(np.random.default_rng(0), 16, 8)
    assert not CorrectBiases({})(model).modified


def norms_before_queries(model) -> list:
    """Give the norms whose output the matrices of queries read."""
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
    expected, before = run(model), operators(model)
    assert FoldQueryBias()(model).modified
    after = operators(model)
    assert before["Add"] - after["Add"] == after["Attention"] > 0
    assert close(run(model), expected)
    for norm, old in zip(norms_before_queries(model), biases, strict=True):
        moved = np.abs(read_constant(norm.inputs[2]) - old).max()
        assert 0.01 < moved < 0.3 if bias == 0 else moved == 0
    assert not FoldQueryBias()(model).modified


@pytest.mark.parametrize(
    "change", ["no gain", "a tiny gain", "two that cancel", "another reader", "a residual scaled"]
)
def test_fold_query_bias_leaves_what_it_would_spoil(traced, change: str):
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
def test_a_norms_bias_is_moved_as_far_as_rounding_asks(seed: int, count: int, mean: float):
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
