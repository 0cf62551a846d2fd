"""Decoders are exported for CUDA without a GPU: emulated on the CPU, not measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_export.decoder import exporter
from bge_export.decoder.graph_cuda import CudaDecoderGraph
from bge_export.targets import select_decoder_targets, select_encoder_targets
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.errors import ExportError
from tests.helpers.decoder_graphs import write_overflowing
from tests.helpers.decoders import SHAPES, write_tiny_decoder


def export(checkpoint: Path, output: Path, *arguments: list[str]):
    """Export targets and precisions. Return the bundle and the reports."""
    inspected = inspect_checkpoint(checkpoint, source=str(checkpoint))
    targets = select_decoder_targets(*arguments)
    rows = exporter.export_decoder(inspected, output, targets)
    return Bundle.open(output), rows


def test_what_has_no_place_in_fp16_is_refused_in_fp16_only(tmp_path: Path):
    checkpoint = write_overflowing(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="Its numbers exceed the range of fp16"):
        export(checkpoint, tmp_path / "bundle", ["cuda"], ["fp16"])
    assert not (tmp_path / "bundle").exists()
    export(checkpoint, tmp_path / "bundle", ["cuda"], ["bf16"])


def test_weights_that_have_no_place_in_fp16_are_refused(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    checkpoint = write_tiny_decoder(tmp_path / "checkpoint")
    (shard,) = checkpoint.glob("*.safetensors")
    tensors = load_file(shard)
    tensors["layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, shard)
    with pytest.raises(ExportError, match=r"up_proj.*above 65504: leave --precision fp16 out"):
        export(checkpoint, tmp_path / "bundle", ["cuda"], ["fp16"])


@pytest.mark.skipif(
    "CUDAExecutionProvider" in OrtCpuEngine.load().get_available_providers(), reason="it has a GPU"
)
@pytest.mark.parametrize("name", list(SHAPES))
def test_variants_are_emulated_and_stay_unmeasured(tmp_path: Path, name: str):
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint", name)
    bundle, rows = export(checkpoint, tmp_path / "bundle", ["cuda"], [])
    found = [(v.name, v.device, v.engine, v.precision, v.parity) for v in bundle.manifest.variants]
    assert found == [
        ("cuda-bf16", "cuda", "onnxruntime", "bf16", None),
        ("cuda-fp16", "cuda", "onnxruntime", "fp16", None),
    ]
    for row in rows:
        assert row.parity is None
        assert "has no CUDAExecutionProvider" in row.skipped_reason
        assert row.emulated is not None
        assert row.emulated.failures(row.precision) == []
    assert {graph.opset for graph in bundle.manifest.graphs.values()} == {24}
    assert not list(bundle.path.glob("onnx/part*"))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in OrtCpuEngine.load().get_available_providers(), reason="it has a GPU"
)
@pytest.mark.parametrize("name", list(SHAPES))
def test_for_tensorrt_likewise(tmp_path: Path, name: str):
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint", name)
    bundle, (row,) = export(checkpoint, tmp_path / "bundle", ["tensorrt"], [])
    (variant,) = bundle.manifest.variants
    assert (variant.name, variant.engine, variant.device) == ("tensorrt-bf16", "tensorrt", "cuda")
    assert variant.parity is None
    assert row.emulated is not None
    assert row.emulated.failures("bf16") == []
    (graph,) = bundle.manifest.graphs.values()
    assert (graph.opset, graph.inputs) == (18, ("input_ids", "attention_mask"))


def test_graphs_that_store_weights_alike_share_a_file(tmp_path: Path):
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint")  # in bf16
    bundle, _ = export(
        checkpoint, tmp_path / "bundle", ["cpu", "cuda"], ["fp32", "bf16", "fp16", "int8"]
    )
    weights = {key: graph.weights for key, graph in bundle.manifest.graphs.items()}
    assert weights == {
        "cpu-fp32": "onnx/model.onnx_data",
        "cpu-bf16": "onnx/model.onnx_data",
        "cpu-int8": "onnx/model_cpu_int8.onnx_data",
        "cuda-bf16": "onnx/model.onnx_data",
        "cuda-fp16": "onnx/model_cuda_fp16.onnx_data",
    }
    data = sorted(path.name for path in bundle.path.glob("onnx/*.onnx_data"))
    assert data == ["model.onnx_data", "model_cpu_int8.onnx_data", "model_cuda_fp16.onnx_data"]


def test_a_broken_graph_is_not_written(tmp_path: Path, monkeypatch):
    real = CudaDecoderGraph._attend
    monkeypatch.setattr(
        CudaDecoderGraph, "_attend", lambda self, inputs, **_: real(self, inputs)
    )  # every token sees every other
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="too far from PyTorch's vectors"):
        export(checkpoint, tmp_path / "bundle", ["cuda"], ["bf16"])
    assert not (tmp_path / "bundle").exists()


def test_it_is_written_when_asked_for_by_name():
    def chosen(*arguments):
        return [(t.name, t.precision) for t in select_decoder_targets(*arguments)]

    assert chosen([], []) == [("cpu", "fp32")]
    assert chosen([], ["bf16"]) == [("cpu", "bf16")]
    assert chosen(["cuda"], []) == [("cuda", "bf16"), ("cuda", "fp16")]
    assert chosen(["cpu", "cuda"], ["fp32", "bf16"]) == [
        ("cpu", "fp32"),
        ("cpu", "bf16"),
        ("cuda", "bf16"),
    ]
    with pytest.raises(ExportError, match=r"requested cuda in fp32(.|\n)*--target cuda"):
        select_decoder_targets(["cuda", "cpu"], ["fp32"])
    with pytest.raises(ExportError, match=r"requested cpu in fp16(.|\n)*--target cuda"):
        select_decoder_targets([], ["fp16"])


def test_of_several_targets_and_precisions_each_is_written_somehow():
    def chosen(*arguments):
        return [target.name for target in select_encoder_targets(*arguments)]

    assert chosen(["openvino", "cpu"], ["bf16", "fp32"]) == ["openvino", "cpu", "portable"]
    # A graph in int8 has its own weights; with others it is written beside the portable one.
    assert chosen(["int8"], []) == chosen(["openvino"], ["int8"]) == ["int8"]
    assert chosen([], ["int8", "fp32"]) == ["cpu", "int8", "portable"]
    assert "int8" not in chosen([], [])
    # On OpenVINO, fp32 is a way to run the graph for the CPU; fp16 is none.
    assert chosen(["openvino", "cpu"], ["fp32"]) == ["cpu", "portable"]
    with pytest.raises(ExportError, match="requested openvino in fp16"):
        select_encoder_targets(["openvino", "cuda"], ["fp16"])
