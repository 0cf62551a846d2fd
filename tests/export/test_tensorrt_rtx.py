"""NVIDIA's own builder makes engines of the graphs for TensorRT, which takes no GPU.

TensorRT for RTX has TensorRT's parser and types, and an optimiser that says what it fuses; it
builds for GPUs that are not there. What it can't show is what an engine computes, and how fast. Its
libraries come in a wheel for Windows, so that they run under wine: ``make tensorrt-rtx``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from bge_export.decoder.graph import DecoderGraph
from bge_export.decoder.graph_tensorrt import TensorRtDecoderGraph
from bge_runtime.engines.tensorrt import Profile, profiles
from bge_runtime.sources import ENCODER_ONLY_M3
from tests.helpers.bundles import ROOT, export, write_tiny_bert, write_tiny_m3
from tests.helpers.decoder_graphs import Decoder
from tests.helpers.decoders import SHAPES, write_tiny_decoder

INSTALLED = ROOT / ".tensorrt-rtx"
SOURCE = ROOT / "tests" / "tensorrt_rtx" / "build_engine.c"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not INSTALLED.is_dir() or shutil.which("wine") is None,
        reason="needs wine and TensorRT for RTX: make tensorrt-rtx",
    ),
]

SHORT, LONG = Profile(65, 512, rows=32), Profile(2049, 8192, rows=2)
"""As many tokens in 32 texts as in 2, and 16 times as many scores in the 2."""

GRAPH = "onnx/model_tensorrt_fp16.onnx"


class Built(NamedTuple):
    """What the builder says of an engine.

    Attributes:
        attentions: How often it found a softmax to be part of an attention.
        scratch_bytes: Memory that lies between its kernels.
    """

    attentions: int
    scratch_bytes: int


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    """Builds an engine of a graph's file for a profile."""
    program = tmp_path_factory.mktemp("builder") / "build_engine.exe"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu"]
    quiet = ["-Wno-deprecated-non-prototype"]
    subprocess.run(
        [*compiler, *quiet, "-O1", "-o", program, SOURCE],
        env=os.environ
        | {"PYTHONPATH": str(INSTALLED), "ZIG_GLOBAL_CACHE_DIR": str(INSTALLED / "zig-cache")},
        check=True,
    )
    environment = os.environ | {"WINEPREFIX": str(INSTALLED / "wine"), "WINEDEBUG": "-all"}

    def build(path: Path, profile: Profile) -> Built:
        import onnx

        graph = onnx.load(path, load_external_data=False).graph
        options = profile.options([value.name for value in graph.input])
        shapes = [options[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")]
        model = "Z:" + str(path).replace("/", "\\")
        run = subprocess.run(
            ["wine", program, model, *shapes],
            check=False,
            env=environment,
            cwd=INSTALLED / "onnxruntime" / "capi",
            capture_output=True,
            text=True,
        )
        graves = [line for line in run.stdout.splitlines() if "ERROR" in line]
        assert run.returncode == 0, "\n".join([*graves, run.stderr])
        assert re.search(r"built with TensorRT for RTX 102\d\d", run.stdout)
        # What it finds on its way out is that there is no GPU.
        assert all("Cuda Runtime" in line for line in graves), graves
        scratch = re.search(r"Max Scratch Memory: (\d+) bytes", run.stdout)
        found = re.findall(r"Found (\S*Softmax\S*) to be part of self-attention", run.stdout)
        return Built(len(set(found)), int(scratch[1]))

    return build


def share_kept(engines: dict[Profile, Built], heads: int) -> float:
    """Tell how much of all scores, in fp32, lies in memory between two kernels."""
    scores = {profile: 4 * profile.rows * heads * profile.longest**2 for profile in (SHORT, LONG)}
    more = engines[LONG].scratch_bytes - engines[SHORT].scratch_bytes
    return more / (scores[LONG] - scores[SHORT])


@pytest.mark.parametrize(
    ("heads", "head_dim"), [(12, 32), (12, 64), (16, 64)], ids=["small", "base", "large"]
)
def test_berts(builder, tmp_path: Path, heads: int, head_dim: int):
    width = heads * head_dim
    write_tiny_bert(tmp_path, layers=2, hidden_size=width, heads=heads, intermediate_size=4 * width)
    for pooling in ("cls", "mean"):
        bundle = export(tmp_path, tmp_path / pooling, pooling=pooling, targets=("tensorrt",))
        for profile in profiles(512):
            assert builder(bundle / GRAPH, profile).attentions == 2


def test_m3_with_its_heads(builder, tmp_path: Path):
    write_tiny_m3(tmp_path, layers=2, hidden_size=256, heads=4, max_length=8192)
    bundle = export(
        tmp_path, tmp_path / "bundle", targets=("tensorrt",), model_class=ENCODER_ONLY_M3
    )
    engines = {profile: builder(bundle / GRAPH, profile) for profile in profiles(8192)}
    # In the last layer there are two, [CLS]'s for the dense vector and all tokens' for ColBERT.
    assert [built.attentions for built in engines.values()] == [3] * 4
    assert share_kept(engines, heads=4) < 0.05


# ---- decoders: heads, heads of keys, and their width, in the proportions of real ones

DECODERS = {
    "mistral": (8, 2, 128),  # bge-en-icl, e5-mistral-7b-instruct: 32, 8, 128
    "gemma2": (4, 2, 256),  # bge-multilingual-gemma2: 16, 8, 256
    "qwen2": (12, 2, 128),  # gte-Qwen2-1.5B-instruct
    "qwen2-bidirectional": (14, 2, 128),  # gte-Qwen2-7B-instruct: 28, 4, 128
    "qwen3": (4, 2, 128),  # Qwen3-Embedding-0.6B: 16, 8, 128
}


class RowsOfOneMatrix(TensorRtDecoderGraph):
    """The attention of the graph for CPUs: what shares a key lies in one matrix."""

    scores_rank = DecoderGraph.scores_rank
    _attention = DecoderGraph._attention


class CappedByTanh(TensorRtDecoderGraph):
    """Softcapping as it is written down everywhere."""

    _softcap = DecoderGraph._softcap


def write_graph(folder: Path, name: str, form: type[DecoderGraph] = TensorRtDecoderGraph) -> Path:
    import onnx_ir as ir

    heads, kv_heads, head_dim = DECODERS[name]
    shape = replace(
        SHAPES[name], heads=heads, kv_heads=kv_heads, head_dim=head_dim, max_length=8192
    )
    decoder = Decoder(folder, name, write=partial(write_tiny_decoder, shape=shape))
    path = folder / "graph.onnx"
    ir.save(decoder.built(form=form, dtype="BFLOAT16"), path)
    return path


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(builder, tmp_path: Path, name: str):
    path = write_graph(tmp_path, name)
    engines = {profile: builder(path, profile) for profile in profiles(8192)}
    attentions = {built.attentions for built in engines.values()}
    # It does not call a softcapped one an attention, and makes one kernel of it all the same.
    assert attentions == {0 if name == "gemma2" else SHAPES[name].layers}
    # Masks, which texts and heads share: one is an eighth of these scores of four heads, and
    # gemma2 has two.
    assert share_kept(engines, DECODERS[name][0]) < 0.25


@pytest.mark.parametrize(
    ("name", "form"), [("qwen2-bidirectional", RowsOfOneMatrix), ("gemma2", CappedByTanh)]
)
def test_what_would_keep_all_scores_in_memory(builder, tmp_path: Path, name: str, form):
    path = write_graph(tmp_path, name, form)
    engines = {profile: builder(path, profile) for profile in (SHORT, LONG)}
    assert share_kept(engines, DECODERS[name][0]) > 0.9
