"""Each system does the same work, or a comparison of speed means nothing."""

import numpy as np
import pytest

from bge_bench.datasets.corpus import paragraphs
from bge_bench.systems.base import BASELINES, FROM_CHECKPOINT, OURS, SystemSpec, open_system
from bge_runtime.bundle.parity import compare
from tests.helpers.bundles import export

TEXTS = ["", "a", "naïve café, 样例数据", *paragraphs(9)]
"""Empty, short and unlike in length; the last ones are longer than 64 tokens."""

MAX_LENGTH = 64


def spec(system, bundle, checkpoint, pooling="cls", **options):
    return SystemSpec(
        system=system,
        model=str(checkpoint if system in FROM_CHECKPOINT else bundle),
        pooling=pooling,
        max_length=MAX_LENGTH,
        threads=1,
        **({"batch_size": 5, "precision": "fp32"} | options),
    )


@pytest.fixture(scope="module", params=["cls", "mean"])
def tiny(request, tiny_bundle, tiny_mean_bundle, tiny_checkpoint):
    """A bundle, its checkpoint and pooling, and our vectors of `TEXTS`."""
    bundle = {"cls": tiny_bundle, "mean": tiny_mean_bundle}[request.param]
    ours = open_system(spec(OURS, bundle, tiny_checkpoint, request.param))
    return bundle, tiny_checkpoint, request.param, ours.encode(TEXTS)


@pytest.mark.parametrize("name", BASELINES)
def test_a_system_computes_our_vectors_and_says_with_what(name, tiny):
    *where, ours = tiny
    system = open_system(spec(name, *where))
    assert system.precision == ("bf16" if name.endswith("bf16") else "fp32")
    assert ", 1 threads, batches of 5" in system.in_force
    assert ("onnx/model.onnx" in system.in_force) == (name not in FROM_CHECKPOINT)
    vectors = system.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert not compare(ours, vectors).failures(system.precision)


def test_what_is_compiled_is_one_layer_for_all(tiny_bundle, tiny_checkpoint, monkeypatch):
    import torch
    from torch._dynamo.utils import counters

    real = torch.nn.Module.compile
    # Traced, and left at that: the compiler itself takes half a minute.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *a, **k: real(*a, backend="eager", **k))
    torch.compiler.reset()
    counters.clear()
    system, plain = (
        open_system(spec(name, tiny_bundle, tiny_checkpoint))
        for name in ("transformers-compiled", "transformers")
    )
    assert ", compiled" in system.in_force
    assert not compare(system.encode(TEXTS), plain.encode(TEXTS)).failures("fp32")
    assert len(system.encode(["a single text"])) == 1
    # However many layers: one for batches with padding, one without, one for a single text.
    assert 1 <= counters["stats"]["unique_graphs"] <= 3
    assert counters["frames"]["total"] <= 3


def test_a_wrong_pooling_is_noticed(tiny_bundle, tiny_checkpoint):
    ours = open_system(spec(OURS, tiny_bundle, tiny_checkpoint)).encode(TEXTS)
    for name in ("sentence-transformers", "fastembed"):
        system = open_system(spec(name, tiny_bundle, tiny_checkpoint, "mean"))
        assert compare(ours, system.encode(TEXTS)).failures("fp32")


def test_openvino_left_alone_takes_its_own_file_and_precision(tiny_checkpoint, tmp_path):
    import openvino

    bundle = export(tiny_checkpoint, tmp_path / "bundle", targets=["openvino", "portable"])
    name = "sentence-transformers-openvino"
    system = open_system(spec(name, bundle, tiny_checkpoint, precision="auto"))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert system.precision == "bf16"
        assert "openvino/openvino_model.xml, INFERENCE_PRECISION_HINT bf16" in system.in_force
    else:
        assert system.precision == "fp32"
        assert "onnx/model.onnx, INFERENCE_PRECISION_HINT f32" in system.in_force
    exact = open_system(spec("transformers", bundle, tiny_checkpoint)).encode(TEXTS)
    assert not compare(system.encode(TEXTS), exact).failures(system.precision)
