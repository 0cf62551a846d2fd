"""A decoder's graph for CUDA computes what transformers does, as far as a CPU can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bge_export.decoder.graph_cuda import CudaDecoderGraph
from bge_export.decoder.graph_tensorrt import TensorRtDecoderGraph
from bge_export.passes import EmulateHalfPrecision
from bge_runtime.bundle import present_names
from bge_runtime.bundle.parity import TOLERANCES, compare
from tests.helpers.decoder_graphs import Decoder, batch, write_overflowing
from tests.helpers.decoders import SHAPES

SIXTEEN_BITS = {"FLOAT16": "fp16", "BFLOAT16": "bf16"}

ANY_16, SHAPE = {"FLOAT16", "BFLOAT16"}, {"INT64"}

CUDA_KERNELS = {
    # Of what size a text is: on the CPU at will.
    "Concat": SHAPE,
    "Range": SHAPE,
    "Shape": {"FLOAT", *SHAPE},
    "Unsqueeze": SHAPE,
    # Masks and lengths.
    "And": {"BOOL"},
    "Greater": {"BOOL", *SHAPE},
    "LessOrEqual": {"BOOL", *SHAPE},
    "ReduceSum": SHAPE,
    "Sub": SHAPE,
    # Moving.
    "Cast": {"FLOAT", *ANY_16},
    "Expand": {*ANY_16, *SHAPE},
    "Gather": {*ANY_16, *SHAPE},
    "GatherND": {"FLOAT", *ANY_16, *SHAPE},
    "Identity": ANY_16,
    "If": {"BOOL", *ANY_16},
    "Reshape": {*ANY_16, *SHAPE},
    "Squeeze": {"FLOAT", *SHAPE},
    "Transpose": ANY_16,
    # Computing.
    "Add": {"FLOAT", *ANY_16, *SHAPE},
    "Attention": {"BOOL", *ANY_16, *SHAPE},
    "Gelu": ANY_16,
    "MatMul": ANY_16,
    "Mul": {"FLOAT", *ANY_16},
    "RMSNormalization": {"FLOAT"},
    "RotaryEmbedding": {*ANY_16, *SHAPE},
    "Sigmoid": ANY_16,
}
"""Operators that the graphs may have, and in which types.

For each of them there is a row in the section on CUDAExecutionProvider of ONNX Runtime's
docs/OperatorKernels.md with these types: Attention from opset 24 on, RMSNormalization and
RotaryEmbedding 23, Gelu 20, the others older. Opset 24 has new versions of Cast, Identity, If,
Reshape, Shape, Squeeze, Transpose and Unsqueeze. onnxruntime-gpu 1.31.1 gave these graphs of all
families to CUDAExecutionProvider, but for arithmetic on shapes, when it opened them with
libraries in the place of CUDA's that compute nothing."""


@pytest.fixture(scope="module", params=list(SHAPES))
def decoder(request, tmp_path_factory) -> Decoder:
    return Decoder(tmp_path_factory.mktemp(request.param), request.param)


def cuda(decoder: Decoder, dtype: str = "FLOAT", config=None):
    """Build the graph; FLOAT is its twin for a CPU."""
    return decoder.built(config, form=CudaDecoderGraph, dtype=dtype)


def past_of(decoder: Decoder, session, tokens: int) -> tuple[np.ndarray, list[np.ndarray]]:
    prefix = np.random.default_rng(1).integers(4, 8000, (1, tokens))
    names = [name for layer in range(decoder.config.layers) for name in present_names(layer)]
    return prefix, session.run(names, decoder.feeds(prefix, np.ones_like(prefix)))


@pytest.mark.parametrize("longest", [20, 90], ids=["within the window", "beyond it"])
def test_vectors_are_those_of_eager_attention(decoder: Decoder, longest: int):
    ids, mask = batch(longest=longest)
    vectors = decoder.vectors(decoder.opened(cuda(decoder)), ids, mask)
    parity = compare(vectors, decoder.torch_vectors(ids, mask))
    assert parity.failures("fp32") == []


@pytest.mark.parametrize(
    ("tokens", "longest"),
    [(7, 16), (7, 90), (37, 90), (37, 3)],
    ids=["within the window", "text beyond it", "both beyond it", "past beyond it"],
)
def test_a_past_stands_for_its_tokens(decoder: Decoder, tokens: int, longest: int):
    if not decoder.config.causal:
        pytest.skip("attends in both directions: there is no past")
    ids, mask = batch(longest=longest)
    session = decoder.opened(cuda(decoder))
    prefix, past = past_of(decoder, session, tokens)
    whole = np.concatenate([np.repeat(prefix, len(ids), 0), ids], axis=1)
    whole_mask = np.concatenate([np.ones((len(ids), tokens), int), mask], axis=1)
    expected = decoder.torch_vectors(whole, whole_mask)
    parity = compare(decoder.vectors(session, ids, mask, past), expected)
    assert parity.failures("fp32") == []
    # Seen failing: a past that is not attended to.
    assert compare(decoder.vectors(session, ids, mask), expected).error_share > 0.1


def test_keys_and_values_are_those_of_the_graph_for_cpus(decoder: Decoder):
    if not decoder.config.causal:
        pytest.skip("attends in both directions: there is no past")
    _, theirs = past_of(decoder, decoder.opened(decoder.built()), 37)
    _, ours = past_of(decoder, decoder.opened(cuda(decoder)), 37)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def without_causality(model):
    for node in model.graph.all_nodes():
        node.attributes.pop("is_causal", None)


def without_masks(model):
    for node in model.graph.all_nodes():
        if node.op_type == "Attention" and len(node.inputs) > 3:
            node.replace_input_with(3, None)


def without_lengths(model):
    for node in model.graph.all_nodes():
        if node.op_type == "Attention" and len(node.inputs) > 6:
            node.replace_input_with(6, None)


@pytest.mark.parametrize(
    ("name", "changes", "break_graph"),
    [
        ("gemma2", {"softcap": None}, None),
        ("gemma2", {"query_scale": 1.0}, None),
        ("gemma2", {"embed_scale": 1.0}, None),
        ("gemma2", {"windows": (None, None, None)}, None),
        ("gemma2", {"windows": (None, 24, None)}, None),
        ("mistral", {"windows": (None, None, None)}, None),
        ("mistral", {"windows": (25, 25, 25)}, None),
        ("mistral", {}, without_masks),
        ("qwen2", {}, without_causality),
        ("qwen3", {}, without_causality),
        ("qwen3", {"query_key_norms": False}, None),
        ("qwen2", {"rope_theta": 1e4}, None),
        ("qwen2-bidirectional", {}, without_lengths),
    ],
)
def test_each_feature_changes_the_vectors(tmp_path: Path, name: str, changes: dict, break_graph):
    decoder = Decoder(tmp_path / "d", name)
    model = cuda(decoder, config=replace(decoder.config, **changes))
    if break_graph is not None:
        break_graph(model)
    ids, mask = batch()
    vectors = decoder.vectors(decoder.opened(model), ids, mask)
    parity = compare(vectors, decoder.torch_vectors(ids, mask))
    assert parity.min_cosine < TOLERANCES["fp32"].min_cosine
    assert parity.error_share > 0.01


def test_the_last_token_is_that_of_the_mask(decoder: Decoder):
    ids, mask = batch()
    session = decoder.opened(cuda(decoder))
    ignored = decoder.vectors(session, ids, np.ones_like(mask))
    assert compare(ignored, decoder.torch_vectors(ids, mask)).error_share > 0.1


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_with_16_bits_rounding_stays_within_tolerance(decoder: Decoder, dtype: str):
    ids, mask = batch()
    model = cuda(decoder, dtype)
    EmulateHalfPrecision()(model)
    session = decoder.opened(model)
    tolerance = TOLERANCES[SIXTEEN_BITS[dtype]]
    vectors = decoder.vectors(session, ids, mask)
    parity = compare(vectors, decoder.torch_vectors(ids, mask))
    assert parity.missed(tolerance) == []
    # It does round: the twin in fp32 is a thousand times nearer.
    assert parity.error_share > 1e-4
    if decoder.config.causal:
        prefix, past = past_of(decoder, session, 37)
        whole = np.concatenate([np.repeat(prefix, len(ids), 0), ids], axis=1)
        whole_mask = np.concatenate([np.ones((len(ids), 37), int), mask], axis=1)
        vectors = decoder.vectors(session, ids, mask, past)
        parity = compare(vectors, decoder.torch_vectors(whole, whole_mask))
        assert parity.missed(tolerance) == []


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_every_operator_has_a_kernel_for_its_types(decoder: Decoder, dtype: str):
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    path = decoder.folder / "checked.onnx"
    ir.save(cuda(decoder, dtype), path)
    onnx.checker.check_model(str(path), full_check=True)
    model = ir.load(path)
    assert model.opset_imports == {"": 24}
    ShapeInferencePass()(model)
    for node in model.graph.all_nodes():
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        assert node.domain == ""
        types = {value.dtype.name for value in values if value.dtype is not None}
        assert len([value for value in values if value.dtype is None]) == 0, node
        assert types <= CUDA_KERNELS[node.op_type], node
        # Nothing is computed in the other 16-bit type.
        assert not types & (ANY_16 - {dtype})


def test_one_attention_a_layer_and_none_with_a_mask_but_in_a_branch(decoder: Decoder):
    model = cuda(decoder, "BFLOAT16")
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Attention"]
    windows = [window for window in decoder.config.windows if window is not None]
    assert len(nodes) == decoder.config.layers + len(windows)
    masked = [node for node in nodes if len(node.inputs) > 3 and node.inputs[3] is not None]
    assert len(masked) == len(windows)
    assert all(node.graph is not model.graph for node in masked)


TENSORRT_OPERATORS = {
    "Add": {"FLOAT", *ANY_16, *SHAPE},
    "And": {"BOOL"},
    "Cast": {"BOOL", "FLOAT", *ANY_16, *SHAPE},
    "Concat": {*ANY_16, *SHAPE},
    "Div": {"FLOAT"},
    "Exp": {"FLOAT"},
    "Expand": {*ANY_16, *SHAPE},
    "Gather": {*ANY_16, *SHAPE},
    "GatherND": {"FLOAT", *ANY_16, *SHAPE},
    "Greater": {"BOOL", *SHAPE},
    "LessOrEqual": {"BOOL", *SHAPE},
    "MatMul": ANY_16,
    "Mul": {"FLOAT", *ANY_16},
    "Range": SHAPE,
    "ReduceMean": {"FLOAT", *SHAPE},
    "ReduceSum": SHAPE,
    "Reshape": {"FLOAT", *ANY_16, *SHAPE},
    "Shape": {"FLOAT", *ANY_16, *SHAPE},
    "Sigmoid": ANY_16,
    "Slice": {*ANY_16, *SHAPE},
    "Softmax": {"FLOAT"},
    "Sqrt": {"FLOAT"},
    "Squeeze": {"FLOAT", *SHAPE},
    "Sub": {"FLOAT", *ANY_16, *SHAPE},
    "Tanh": {"FLOAT"},
    "Transpose": ANY_16,
    "Unsqueeze": {"BOOL", "FLOAT", *ANY_16, *SHAPE},
    "Where": {"BOOL", "FLOAT"},
}
"""Operators of the graphs for TensorRT, with their types in the table of docs/operators.md of
onnx/onnx-tensorrt 10."""


@pytest.mark.parametrize("longest", [20, 90], ids=["within the window", "beyond it"])
def test_for_tensorrt_vectors_are_those_of_eager_attention(decoder: Decoder, longest: int):
    ids, mask = batch(longest=longest)
    expected = decoder.torch_vectors(ids, mask)

    def parity_of(dtype: str):
        model = decoder.built(form=TensorRtDecoderGraph, dtype=dtype)
        EmulateHalfPrecision()(model)
        session = decoder.opened(model)
        assert {value.name for value in session.get_inputs()} == {"input_ids", "attention_mask"}
        feeds = {"input_ids": ids, "attention_mask": mask}
        return compare(session.run(["sentence_embedding"], feeds)[0], expected)

    assert parity_of("FLOAT").failures("fp32") == []
    rounded = parity_of("BFLOAT16")
    assert rounded.failures("bf16") == []
    assert rounded.error_share > 1e-4


@pytest.mark.parametrize("softcap", [0.01, 0.5, 50.0])
def test_softcapping_without_tanh_is_right_where_its_exponential_is_infinite(
    tmp_path: Path, softcap: float
):
    gemma2 = Decoder(tmp_path / "gemma2", "gemma2")
    config = replace(gemma2.config, softcap=softcap)
    ids, mask = batch()
    expected = gemma2.vectors(gemma2.session(config), ids, mask)
    session = gemma2.opened(gemma2.built(config, form=TensorRtDecoderGraph))
    (capped,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_allclose(capped, expected, atol=1e-5)


def test_every_operator_for_tensorrt_is_on_the_list(decoder: Decoder):
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    path = decoder.folder / "checked.onnx"
    ir.save(decoder.built(form=TensorRtDecoderGraph, dtype="BFLOAT16"), path)
    onnx.checker.check_model(str(path), full_check=True)
    model = ir.load(path)
    assert model.opset_imports == {"": 18}
    ShapeInferencePass()(model)
    for node in model.graph.all_nodes():
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        types = {value.dtype.name for value in values if value.dtype is not None}
        assert node.domain == ""
        assert types <= TENSORRT_OPERATORS[node.op_type], node
        assert "FLOAT16" not in types


def test_an_overflow_on_the_way_shows_on_the_cpu_as_well(tmp_path: Path):
    decoder = Decoder(tmp_path / "d", "gemma2", write=write_overflowing)
    ids, mask = batch()
    model = cuda(decoder, "FLOAT16")
    # Left to itself, ONNX Runtime keeps what is between two operators in fp32.
    assert np.isfinite(decoder.vectors(decoder.opened(model), ids, mask)).all()
    EmulateHalfPrecision()(model)
    assert not np.isfinite(decoder.vectors(decoder.opened(model), ids, mask)).all()
