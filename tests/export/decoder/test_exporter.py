"""Decoders are exported whole, proven in parts, and with little memory."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bge_export.checkpoint.inspect import inspect_checkpoint
from bge_export.checkpoint.safetensors import read_header
from bge_export.decoder import exporter, graph, layerwise_gate
from bge_export.targets import select_decoder_targets, select_encoder_targets
from bge_runtime.bundle import FILE_NAME
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.errors import ExportError
from tests.helpers.bundles import ROOT
from tests.helpers.decoders import SHAPES, export_decoder, write_tiny_decoder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_decoder(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("whole_bytes", [0, 1 << 30], ids=["in parts", "in one piece"])
def test_every_variant_is_proven(tmp_path: Path, monkeypatch, name: str, whole_bytes: int):
    monkeypatch.setattr(layerwise_gate, "_WHOLE_BYTES", whole_bytes)
    folder = write_tiny_decoder(tmp_path / "checkpoint", name)
    bundle = Bundle.open(export_decoder(folder, tmp_path / "bundle"))
    assert bundle.manifest.model.pooling == "last_token"
    assert bundle.manifest.model.model_class == "decoder-only-base"
    names = [variant.name for variant in bundle.manifest.variants]
    assert names == ["openvino-bf16", "cpu-fp32"]
    for variant in bundle.manifest.variants:
        if variant.precision == "fp32":
            assert variant.parity is not None
            assert variant.parity.error_share < 1e-4
    assert not list(bundle.path.glob("onnx/part*"))


def test_opt_in_precisions_have_files_of_their_own(checkpoint: Path, tmp_path: Path):
    bundle = Bundle.open(
        export_decoder(checkpoint, tmp_path / "b", precisions=("fp32", "bf16", "int8", "int4"))
    )
    graphs = bundle.manifest.graphs
    assert set(graphs) == {"cpu-fp32", "cpu-bf16", "cpu-int8", "cpu-int4"}
    # The checkpoint itself is in bf16.
    assert graphs["cpu-bf16"].weights == graphs["cpu-fp32"].weights
    assert len({graph.weights for graph in graphs.values()}) == 3
    sizes = {key: bundle.manifest.files[graph.weights].size_bytes for key, graph in graphs.items()}
    assert sizes["cpu-int4"] < sizes["cpu-int8"] < sizes["cpu-fp32"]
    # Of two graphs for one variant the smaller one is run.
    by_name = {variant.name: variant for variant in bundle.manifest.variants}
    assert by_name["openvino-bf16"].graph == "cpu-bf16"
    assert {v.precision for v in bundle.manifest.variants} == {"fp32", "bf16", "int8", "int4"}


def test_a_broken_graph_is_not_written(checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(layerwise_gate, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(graph, "_MASKED", 0.0)  # every token sees every other
    with pytest.raises(ExportError, match="too far from PyTorch's vectors"):
        export_decoder(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_language_model_head_is_left_out(checkpoint: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    index = checkpoint / "model.safetensors.index.json"
    (file,) = set(json.loads(index.read_text())["weight_map"].values())
    tensors = {f"model.{k}": v for k, v in load_file(checkpoint / file).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    (checkpoint / file).unlink()
    index.unlink()
    save_file(tensors, checkpoint / "model.safetensors")
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), "architectures": ["MistralForCausalLM"]}
    path.write_text(json.dumps(config))
    with_head = Bundle.open(export_decoder(checkpoint, tmp_path / "with"))
    without = export_decoder(write_tiny_decoder(tmp_path / "other"), tmp_path / "without")
    np.testing.assert_array_equal(
        with_head.reference().vectors, Bundle.open(without).reference().vectors
    )


def shard_of(checkpoint: Path) -> Path:
    return next(checkpoint.glob("*.safetensors"))


def test_a_missing_shard(checkpoint: Path, tmp_path: Path):
    shard_of(checkpoint).unlink()
    with pytest.raises(ExportError, match="which the index names, is missing; download it again"):
        export_decoder(checkpoint, tmp_path / "bundle")


def test_an_index_that_names_a_missing_tensor(checkpoint: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(shard_of(checkpoint))
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, shard_of(checkpoint))
    with pytest.raises(ExportError, match=r"lacks layers\.1\.mlp\.up_proj\.weight"):
        export_decoder(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_interrupted_download(checkpoint: Path, tmp_path: Path):
    shard = shard_of(checkpoint)
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"is damaged.*download it again"):
        export_decoder(checkpoint, tmp_path / "bundle")


def test_a_tensor_of_another_shape(checkpoint: Path, tmp_path: Path):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 192}))
    with pytest.raises(ExportError, match=r"shape \(160, 64\), where its config\.json calls for"):
        export_decoder(checkpoint, tmp_path / "bundle")


def test_not_a_number_in_the_weights(checkpoint: Path, tmp_path: Path):
    shard = shard_of(checkpoint)
    place = read_header(shard)["layers.0.mlp.up_proj.weight"]
    data = bytearray(shard.read_bytes())
    data[place["start"] : place["start"] + 2] = struct.pack("<H", 0x7FC0)  # bf16's NaN
    shard.write_bytes(data)
    with pytest.raises(ExportError, match=r"mlp\.up_proj\.weight of the checkpoint holds NaN"):
        export_decoder(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_pickled_weights_are_refused(checkpoint: Path, tmp_path: Path):
    for path in (*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.index.json")):
        path.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ExportError, match="safe_serialization"):
        export_decoder(checkpoint, tmp_path / "bundle")


def test_an_interruption_leaves_nothing_and_can_be_repeated(
    checkpoint: Path, tmp_path: Path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporter, "compute_vectors", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_decoder(checkpoint, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (export_decoder(checkpoint, tmp_path / "bundle") / FILE_NAME).is_file()


def test_other_pooling_than_the_last_token_is_refused(checkpoint: Path):
    with pytest.raises(ExportError, match="pools the last token of decoders"):
        inspect_checkpoint(checkpoint, source=str(checkpoint), pooling="mean")


def test_a_decoder_is_not_exported_as_an_encoder(checkpoint: Path):
    with pytest.raises(ExportError, match="type 'mistral'"):
        inspect_checkpoint(
            checkpoint, source=str(checkpoint), model_class="encoder-only-base", pooling="cls"
        )


def test_targets_of_the_other_kind_are_refused_with_the_table():
    with pytest.raises(ExportError, match=r"openvino, which(.|\n)*decoders: the checkpoint's own"):
        select_decoder_targets(["openvino"], [])
    with pytest.raises(ExportError, match=r"int4, which(.|\n)*every ONNX consumer"):
        select_encoder_targets([], ["int4"])


MEMORY = """
import resource, sys
from pathlib import Path
import onnxruntime, openvino
from bge_export.bundle import parity_tokens
from tests.helpers.decoders import export_decoder
# Those that take most memory; with the others the gate would take twice as long.
texts = tuple(sorted(parity_tokens.PARITY_TEXTS, key=len)[-2:])
parity_tokens.PARITY_TEXTS = texts
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
export_decoder(Path(sys.argv[1]), Path(sys.argv[2]))
print((peak() - before) * 1024)
"""


@pytest.mark.parametrize("layers", [12, pytest.param(32, marks=pytest.mark.slow)])
def test_export_takes_less_memory_than_weights(tmp_path: Path, layers: int):
    from bge_export.synthetic.decoder import write_random_decoder
    from bge_export.synthetic.encoder import make_tokenizer
    from bge_runtime.sources import DecoderShape

    shape = DecoderShape(
        architecture="mistral", layers=layers, hidden_size=1024, heads=8, kv_heads=2, head_dim=128,
        intermediate_size=4096, vocab_size=9000, max_length=4096,
    )  # fmt: skip
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_random_decoder(shape, checkpoint, seed=0)
    make_tokenizer(shape.vocab_size, "mistral").save_pretrained(checkpoint)
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert weights > layers * 30e6
    command = [sys.executable, "-W", "ignore", "-c", MEMORY]
    done = subprocess.run(
        [*command, str(checkpoint), str(tmp_path / "bundle")],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    shutil.rmtree(tmp_path)
    # The same with 4, 8 and 16 layers.
    assert int(done.stdout) < 300e6
