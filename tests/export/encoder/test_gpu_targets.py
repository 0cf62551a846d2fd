"""Encoders are exported for CUDA and TensorRT where there is neither, and proven on the CPU."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_export.encoder import emulation, exporter, reference, write
from bge_export.passes import (
    DecomposePackedAttention,
    EmulateHalfPrecision,
    FoldAttentionBias,
    FoldQueryBias,
    FuseForCuda,
    HalfPrecision,
    PackAttention,
    PruneLastLayer,
)
from bge_export.targets import CUDA, CUDA_UNIFORM, TENSORRT, select_encoder_targets
from bge_runtime.bundle import COMPUTE_HEADS, HEAD_OUTPUTS, SENTENCE_EMBEDDING
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import compare
from bge_runtime.engines.batch_arrays import graph_inputs, split_by_text
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.errors import ExportError
from bge_runtime.variants.parity_check import padded_outputs
from tests.helpers.bundles import export, keep_traces, write_tiny_bert
from tests.helpers.runtime import PROPERTY

WITHOUT_GPU = pytest.mark.skipif(
    "CUDAExecutionProvider" in OrtCpuEngine.load().get_available_providers(), reason="it has a GPU"
)

SHAPE, INDEX = {"INT64"}, {"INT32", "INT64"}

CUDA_KERNELS = {
    "": {
        "Add": {"FLOAT16", "INT64"},
        "And": {"BOOL"},
        "Cast": {"BOOL", "FLOAT", "FLOAT16", *INDEX},
        "Concat": SHAPE,
        "Constant": {"FLOAT"},
        "ConstantOfShape": SHAPE,
        "CumSum": SHAPE,
        "Div": {"FLOAT16"},
        "Equal": {"BOOL", *INDEX},
        "Expand": {"FLOAT16", *SHAPE},
        "Gather": {"FLOAT16", *INDEX},
        "GatherElements": SHAPE,
        "GatherND": SHAPE,
        "GreaterOrEqual": {"BOOL", *INDEX},
        "If": {"BOOL", "FLOAT"},
        "LayerNormalization": {"FLOAT16"},
        "Less": {"BOOL", *INDEX},
        "MatMul": {"FLOAT16"},
        "Mul": SHAPE,
        "Not": {"BOOL"},
        "Range": INDEX,
        "Relu": {"FLOAT16"},
        "Reshape": {"FLOAT16", *INDEX},
        "Shape": {"FLOAT16", *INDEX},
        "Slice": {"FLOAT16", *INDEX},
        "Squeeze": {"FLOAT16", *SHAPE},
        "Sub": INDEX,
        "Unsqueeze": INDEX,
    },
    "com.microsoft": {
        "BiasGelu": {"FLOAT16"},
        "MultiHeadAttention": {"FLOAT16"},
        "PackedMultiHeadAttention": {"FLOAT16", "INT32"},
        "SkipLayerNormalization": {"FLOAT16"},
    },
}
"""Operators that a graph for CUDA may have, and in which types: each has a row with them in the
section on CUDAExecutionProvider of ONNX Runtime's docs/OperatorKernels.md, but for Constant, which
it turns into an initializer. onnxruntime-gpu 1.31.1
gave all nodes of these graphs but arithmetic on shapes to CUDAExecutionProvider, when it opened
them with libraries in the place of CUDA's that compute nothing."""

TENSORRT_OPERATORS = {
    "": {
        "Add": {"FLOAT16", *SHAPE},
        "Cast": {"BOOL", "FLOAT", "FLOAT16", *INDEX},
        "Concat": SHAPE,
        "CumSum": INDEX,
        "Div": {"FLOAT16"},
        "Equal": {"BOOL", *INDEX},
        "Erf": {"FLOAT16"},
        "Expand": {"FLOAT16", *SHAPE},
        "Gather": {"FLOAT16", *SHAPE},
        "GatherElements": SHAPE,
        "LayerNormalization": {"FLOAT16"},
        "MatMul": {"FLOAT16"},
        "Mul": {"FLOAT16", *INDEX},
        "Not": {"BOOL"},
        "ReduceSum": {"FLOAT16", *SHAPE},
        "Relu": {"FLOAT16"},
        "Reshape": {"FLOAT16", *SHAPE},
        "Shape": {"FLOAT16", *SHAPE},
        "Slice": {"FLOAT16", *SHAPE},
        "Softmax": {"FLOAT16"},
        "Squeeze": {"FLOAT16", *SHAPE},
        "Sub": {"FLOAT16"},
        "Transpose": {"FLOAT16"},
        "Unsqueeze": {"FLOAT16", *SHAPE},
        "Where": {"BOOL", "FLOAT16"},
    },
}
"""Likewise for TensorRT: the table of docs/operators.md of onnx/onnx-tensorrt 10."""


@pytest.fixture(scope="module")
def tiny_gpu_m3(tiny_m3_checkpoint: Path, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("bundles") / "gpu-m3"
    targets = ("cuda", "tensorrt", "cpu")
    return export(tiny_m3_checkpoint, output, targets=targets, model_class="encoder-only-m3")


def traces(checkpoint: Path, pooling: str):
    """Trace a checkpoint in both ways, as an export does. Clone them before changing them."""
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder.load import (
        find_padding_position,
        has_token_types,
        load_encoder,
        load_heads,
        max_length,
    )
    from bge_export.encoder.pooling import PooledEncoder

    keep_traces()
    has_heads = (checkpoint / "sparse_linear.pt").exists()
    inspected = inspect_checkpoint(
        checkpoint,
        source="tiny",
        pooling=pooling,
        model_class="encoder-only-m3" if has_heads else None,
    )
    encoder = load_encoder(inspected)
    wrapped = PooledEncoder(
        encoder,
        pooling=pooling,
        token_types=has_token_types(encoder),
        heads=load_heads(inspected, width=48),
    )
    limit, padding = max_length(encoder), find_padding_position(encoder)
    packed = exporter.trace_packed(wrapped, padding_position=padding, max_length=limit)
    return exporter.trace(wrapped, max_length=limit), packed


@pytest.fixture(scope="module", params=["cls", "mean", "m3", "m3 last_token"])
def both(request, tiny_checkpoint: Path, tiny_m3_checkpoint: Path):
    checkpoint = tiny_m3_checkpoint if "m3" in request.param else tiny_checkpoint
    pooling = request.param.removeprefix("m3").strip() or "cls"
    return traces(checkpoint, pooling)


def opened(model):
    """Open a graph on the CPU."""
    import onnx_ir as ir

    ort = OrtCpuEngine.load()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def with_padding(rows, mask):
    """Make one array of arrays without padding, the first column of ``mask`` left out."""
    assert [len(row) for row in rows] == (mask.sum(axis=1) - 1).tolist()
    padded = np.zeros((len(mask), mask.shape[1] - 1, rows[0].shape[1]), dtype=rows[0].dtype)
    for row, vectors in zip(padded, rows, strict=True):
        row[: len(vectors)] = vectors
    return padded


def run(session, lengths, *, seed: int = 0):
    """Run texts of these lengths; gives each output in its padded form, zeros at padding."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(5, 9000, mask.shape), 1)
    # A text may spell the padding token: RoBERTa does not count it.
    ids[:, 3:4] = 1
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name for value in session.get_inputs()}
    feeds = graph_inputs(inputs, ids, mask) | {COMPUTE_HEADS: np.array(True)}
    given = {name: array for name, array in feeds.items() if name in inputs}
    found = session.run(names, given)
    if "position_ids" in inputs:
        found = [split_by_text(name, value, mask) for name, value in zip(names, found, strict=True)]
        found = [with_padding(value, mask) if value.dtype == object else value for value in found]
    by_name = dict(zip(names, found, strict=True))
    by_name.pop("last_hidden_state", None)
    for name in HEAD_OUTPUTS:
        if name in by_name:
            shift = mask.shape[1] - by_name[name].shape[1]
            kept = mask[:, shift:].reshape(
                *by_name[name].shape[:2], *[1] * (by_name[name].ndim - 2)
            )
            by_name[name] = by_name[name] * kept
    return by_name


def packed_for_cpu(packed, *, half: bool = False):
    """Bring a packed trace into CUDA's form, and that into one for a CPU."""
    model = packed.clone()
    for graph_pass in (*CUDA.passes(), DecomposePackedAttention()):
        if half or not isinstance(graph_pass, HalfPrecision):
            graph_pass(model)
    if half:
        EmulateHalfPrecision()(model)
    return model


def assert_close(ours, theirs, tolerance: float = 2e-5):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # Not of unit length: components of 7, and another order of summation.
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=tolerance, err_msg=name)


@PROPERTY
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_packed_texts_get_the_outputs_of_padded_ones(sessions, lengths):
    padded, packed = sessions
    # Two tokens at least: the row for a text of M3's ColBERT vectors is else empty.
    lengths = [max(2, length) for length in lengths]
    assert_close(run(packed, lengths), run(padded, lengths))


def test_more_tokens_in_a_batch_than_a_text_may_have(sessions):
    padded, packed = sessions
    lengths = [500, 499, 30]
    assert_close(run(packed, lengths), run(padded, lengths))


def batch_of(lengths):
    """Make token ids and their mask."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return np.random.default_rng(0).integers(5, 90, mask.shape) * mask, mask


@PROPERTY
@given(st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_texts_of_one_length_get_the_outputs_of_others(engines, lengths):
    """An engine sorts others by length itself."""
    ids, mask = batch_of(lengths)
    names, even, packed = engines
    results = (engine.run(ids, mask, names) for engine in (even, packed))
    for name, ours, theirs in zip(names, *results, strict=True):
        assert len(ours) == len(theirs) == len(lengths)
        for row, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(row, other, rtol=0, atol=0.05, err_msg=name)


@pytest.mark.parametrize("lengths", [[7, 7, 7], [9, 4]])
def test_vectors_do_not_need_the_heads(engines, lengths):
    names, _, packed = engines
    ids, mask = batch_of(lengths)
    with_heads, (alone,) = packed.run(ids, mask, names), packed.run(ids, mask, names[:1])
    assert names[0] == "sentence_embedding"
    np.testing.assert_array_equal(with_heads[0], alone)
    if len(names) > 1:
        feeds = graph_inputs(packed._session.input_names, ids, mask)
        assert feeds["one_length"] == (len(set(lengths)) == 1)
        for asked, sizes in ((True, [sum(lengths)] * 2), (False, [0, 0])):
            feeds[COMPUTE_HEADS] = np.array(asked)
            _, *heads = packed._session.session.run(list(names), feeds)
            assert [len(head) for head in heads] == sizes


@pytest.fixture(scope="module", params=["tiny_gpu_bundle", "tiny_gpu_m3"])
def engines(request):
    """Names of outputs, and an engine on a CPU for each of the two graphs for CUDA."""
    import onnx_ir as ir

    folder = request.getfixturevalue(request.param)
    bundle = Bundle.open(folder)
    opened = []
    for name in ("cuda-even", "cuda"):
        graph = bundle.graph(name)
        model = ir.load(folder / graph.file)
        DecomposePackedAttention()(model)
        EmulateHalfPrecision()(model)
        file = f"onnx/{name}-on-cpu-{os.getpid()}.onnx"  # the bundle is all workers'
        ir.save(model, folder / file)
        write = {name: replace(graph, file=file)}
        variant = next(v for v in bundle.manifest.variants if v.graph == name)
        on_cpu = replace(variant, device="cpu")
        opened.append(OrtCpuEngine(Bundle(folder, replace(bundle.manifest, graphs=write)), on_cpu))
    return bundle.graph("cuda").outputs, *opened


@pytest.fixture(scope="module")
def sessions(both):
    padded, packed = both
    return opened(_at_opset_23(padded)), opened(packed_for_cpu(packed))


def _at_opset_23(model):
    from bge_export.passes import AttentionToMatMul, BroadcastMask

    model = model.clone()
    BroadcastMask()(model)
    AttentionToMatMul()(model)
    return model


def test_without_the_lengths_texts_see_each_other(both):
    _, packed = both
    model = packed.clone()
    for graph_pass in CUDA.passes()[:2]:
        graph_pass(model)
    alone = run(opened(packed_for_cpu(packed)), [9, 4])
    together = run(opened(_at_opset_23(model)), [9, 4])
    assert np.abs(alone["sentence_embedding"] - together["sentence_embedding"]).max() > 0.1


def test_in_fp16_outputs_stay_near(both):
    _, packed = both
    lengths = [33, 20, 7, 2, 12, 40]
    wide = run(opened(packed_for_cpu(packed)), lengths)
    narrow = run(opened(packed_for_cpu(packed, half=True)), lengths)
    parity = compare(narrow["sentence_embedding"], wide["sentence_embedding"])
    assert parity.failures("fp16") == []
    assert parity.error_share > 1e-5  # it does round
    assert narrow["sentence_embedding"].dtype == np.float32


def test_biases_of_keys_and_values_are_folded(both):
    padded, _ = both
    before, model = Counter(node.op_type for node in padded.graph), padded.clone()
    assert FoldAttentionBias()(model).modified
    after = Counter(node.op_type for node in model.graph)
    assert before["Add"] - after["Add"] == 2 * before["Attention"]
    lengths = [33, 20, 7, 2]
    assert_close(run(opened(_at_opset_23(model)), lengths),
                 run(opened(_at_opset_23(padded)), lengths))  # fmt: skip
    assert not FoldAttentionBias()(model).modified


def test_a_bias_of_values_that_is_dropped_shows(both):
    padded, _ = both
    model = padded.clone()
    FoldAttentionBias()(model)
    for name, value in list(model.graph.initializers.items()):
        if name.endswith("_with_values"):
            array = value.const_value.numpy()
            import onnx_ir as ir

            value.const_value = ir.tensor(np.zeros_like(array), name=name)
    lengths = [33, 20, 7, 2]
    ours = run(opened(_at_opset_23(model)), lengths)["sentence_embedding"]
    theirs = run(opened(_at_opset_23(padded)), lengths)["sentence_embedding"]
    assert np.abs(ours - theirs).max() > 1e-3


def test_one_node_for_attention_gelu_and_norm(both):
    _, packed = both
    model = packed.clone()
    passes = FoldQueryBias(), FoldAttentionBias(), PruneLastLayer(), PackAttention(), FuseForCuda()
    for graph_pass in passes:
        graph_pass(model)
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    if len(model.graph.outputs) == 1:
        RemoveUnusedNodesPass()(model)
        counts = Counter(node.op_type for node in model.graph)
        assert counts["PackedMultiHeadAttention"] == 3
        assert counts["BiasGelu"] == 3
        assert counts["SkipLayerNormalization"] == 6
        # Of the embeddings.
        assert (counts["LayerNormalization"], counts["Add"]) == (1, 2)
        assert counts["Gelu"] == counts["Attention"] == counts["Transpose"] == 0


def test_the_last_feed_forward_layer_sees_one_row_a_text(tiny_checkpoint: Path):
    _, packed = traces(tiny_checkpoint, "cls")
    model = packed.clone()
    FoldAttentionBias()(model)
    assert PruneLastLayer()(model).modified
    gather = next(
        node
        for node in model.graph
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 1
    )
    behind = Counter()
    waiting = list(gather.outputs)
    while waiting:
        for user in waiting.pop().consumers():
            behind[user.op_type] += 1
            waiting += user.outputs
    assert behind["Gelu"] >= 1
    assert behind["Attention"] == 0


def test_a_weight_beyond_fp16_is_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    checkpoint = write_tiny_bert(tmp_path / "checkpoint", layers=1)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = 1e6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"1e\+06, which is out of fp16's range"):
        export(checkpoint, tmp_path / "bundle", targets=("cuda",))
    assert not (tmp_path / "bundle").exists()


def test_an_encoder_without_positions_is_refused_by_name(tiny_checkpoint: Path):
    import torch

    from bge_export.encoder.pooling import PooledEncoder
    from bge_export.encoder.trace import trace_packed

    class Bag(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            """Take no positions."""

    wrapped = PooledEncoder(Bag(), pooling="cls", token_types=False)
    with pytest.raises(ExportError, match=r"Bag does not take the positions.*--target cuda"):
        trace_packed(wrapped, padding_position=None, max_length=512)


@WITHOUT_GPU
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_variants_are_emulated_and_stay_unmeasured(tiny_checkpoint, tmp_path, target):
    from bge_export.checkpoint.inspect import inspect_checkpoint

    inspected = inspect_checkpoint(tiny_checkpoint, source="tiny", pooling="cls")
    output = tmp_path / "bundle"
    rows = exporter.export_encoder(inspected, output, select_encoder_targets([target], []))
    bundle = Bundle.open(output)
    write = {"cuda": ["cuda", "cuda-even"]}.get(target, [target])
    halves = [row for row in rows if row.precision == "fp16"]
    assert len(halves) == len(write)
    for row in halves:
        assert row.parity is None
        assert "has no" in row.skipped_reason
        assert row.emulated.failures("fp16") == []
    variants = [v for v in bundle.manifest.variants if v.device == "cuda"]
    assert [variant.graph for variant in variants] == write
    for variant in variants:
        assert (variant.precision, variant.parity) == ("fp16", None)
        assert variant.engine == {"cuda": "onnxruntime"}.get(target, target)
    assert not list(output.glob("onnx/cpu_emulation*"))


def spoil_norms(graph):
    import onnx_ir as ir

    for node in graph:
        if "epsilon" in node.attributes:
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1.0)


@WITHOUT_GPU
@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("broken", ["pooling", "norm"])
def test_a_broken_graph_is_not_written(tiny_checkpoint, tmp_path, monkeypatch, target, broken):
    if broken == "pooling":
        vectors = reference.compute_outputs

        def of_mean_pooling(encoder, token_ids):
            encoder.pooling = "mean"
            return vectors(encoder, token_ids)

        # The gate of the fp32 graphs would be first to refuse it.
        monkeypatch.setattr(reference, "compute_outputs", of_mean_pooling)
    else:
        real = HalfPrecision.call

        def call(self, model):
            spoil_norms(model.graph)
            return real(self, model)

        monkeypatch.setattr(HalfPrecision, "call", call)
    with pytest.raises(ExportError, match=rf"model_{target}_fp16.*too far from PyTorch's vectors"):
        export(tiny_checkpoint, tmp_path / "bundle", targets=(target,))
    assert not (tmp_path / "bundle").exists()


def test_a_broken_branch_is_not_written(tiny_checkpoint, tmp_path, monkeypatch):
    real = write.choose_by_length

    def broken(packed, uniform):
        spoil_norms(uniform.graph)
        return real(packed, uniform)

    monkeypatch.setattr(write, "choose_by_length", broken)
    with pytest.raises(ExportError, match=r"model_cuda_fp16.*too far from PyTorch's vectors"):
        export(tiny_checkpoint, tmp_path / "bundle", targets=("cuda",))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["tiny_gpu_bundle", "tiny_gpu_m3"])
def test_both_share_one_file_of_weights_in_fp16(request, name: str):
    import onnx_ir as ir

    bundle = request.getfixturevalue(name)
    manifest = Bundle.open(bundle).manifest
    weights = {key: graph.weights for key, graph in manifest.graphs.items()}
    assert weights["cuda"] == weights["cuda-even"] == "onnx/model_fp16.onnx_data"
    assert weights["tensorrt"] == "onnx/model_fp16.onnx_data"
    whole = manifest.files["onnx/model.onnx_data"].size_bytes
    assert manifest.files["onnx/model_fp16.onnx_data"].size_bytes < 0.52 * whole
    for target in (CUDA, CUDA_UNIFORM, TENSORRT):
        inside = [
            value.const_value.nbytes
            for value in ir.load(bundle / target.file).graph.initializers.values()
            if not isinstance(value.const_value, ir.ExternalTensor)
            and value.dtype == ir.DataType.FLOAT16
        ]
        assert max(inside) < 1024  # biases of this tiny model


@pytest.mark.parametrize("name", ["tiny_gpu_bundle", "tiny_gpu_m3"])
@pytest.mark.parametrize(
    ("target", "known"),
    [(CUDA, CUDA_KERNELS), (CUDA_UNIFORM, CUDA_KERNELS), (TENSORRT, TENSORRT_OPERATORS)],
)
def test_every_operator_is_on_a_list(request, name: str, target, known):
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    path = request.getfixturevalue(name) / target.file
    onnx.checker.check_model(str(path), full_check=True)
    model = ir.load(path)
    assert set(model.opset_imports) == set(known)
    assert model.opset_imports[""] == 18
    ShapeInferencePass()(model)
    for node in model.graph.all_nodes():
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        types = {value.dtype.name for value in values if value.dtype is not None}
        assert len([value for value in values if value.dtype is None]) == 0, node
        assert types <= known[node.domain][node.op_type], node
        # float32 is for the outputs alone.
        assert "FLOAT" not in types or node.outputs[0].is_graph_output()


@WITHOUT_GPU
def test_trained_weights_in_fp16_at_every_length(minilm_checkpoint: Path, tmp_path):
    """What a GPU would compute, by the CPU, of 1 to 512 tokens."""
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder.load import load_encoder
    from bge_export.encoder.pooling import PooledEncoder

    seen = {}

    def measured(bundle, variant, reference):
        if variant.precision == "fp16":
            seen[variant.name] = engine_vectors(bundle, variant)
        return real(bundle, variant, reference)

    def engine_vectors(bundle, variant):
        from bge_runtime.engines import open_engine

        engine = open_engine(bundle, variant)
        assert (engine.info.provider, engine.info.precision) == ("CPUExecutionProvider", "fp16")
        outputs = padded_outputs(engine, texts, [SENTENCE_EMBEDDING], pad_token_id=0)
        return np.stack(outputs[SENTENCE_EMBEDDING])

    rng = np.random.default_rng(0)
    lengths = [*range(1, 33), *range(64, 513, 32)]
    texts = [np.r_[101, rng.integers(1000, 30000, length)][:length] for length in lengths]
    real = emulation.measure_parity
    targets = ("cuda", "tensorrt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulation, "measure_parity", measured)
        export(minilm_checkpoint, tmp_path / "bundle", pooling="mean", targets=targets)
    encoder = load_encoder(inspect_checkpoint(minilm_checkpoint, source="minilm", pooling="mean"))
    wrapped = PooledEncoder(encoder, pooling="mean", token_types=True)
    vectors = reference.compute_outputs(wrapped, texts)["sentence_embedding"]
    assert set(seen) == {"cuda-fp16", "cuda-even-fp16", "tensorrt-fp16"}
    for found in seen.values():
        parity = compare(found, np.stack(vectors))
        assert parity.min_cosine >= 0.9999
        assert parity.failures("fp16") == []


def test_they_are_written_when_asked_for_by_name():
    def chosen(*arguments):
        return [target.name for target in select_encoder_targets(*arguments)]

    assert not {"cuda", "tensorrt"} & set(chosen([], []))
    assert chosen(["cuda"], []) == ["cuda", "cuda-even", "portable"]
    # A bundle with this graph alone could not be opened: nothing runs texts of different lengths.
    assert chosen(["cuda-even"], []) == ["cuda", "cuda-even", "portable"]
    assert chosen(["cuda-even"], ["fp16"]) == ["cuda", "cuda-even", "portable"]
    assert chosen([], ["fp16"]) == ["cuda", "cuda-even", "tensorrt", "portable"]
