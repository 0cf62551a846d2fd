"""Baselines in int8: their models are made once, and their vectors are near the reference's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bge_bench.datasets.corpus import paragraphs
from bge_bench.datasets.named import calibration_texts
from bge_bench.errors import BenchError
from bge_bench.systems import int8_models, lineup
from bge_bench.systems.base import INT8_BASELINES, SystemSpec, open_system
from bge_bench.systems.int8_models import dynamic_file, int8_model
from bge_bench.systems.outputs import is_void
from bge_runtime.bundle import Bundle, compare

TEXTS = ["", "a", "naïve café, 样例数据", *paragraphs(9)]
NEEDED = {
    "sentence-transformers-openvino-int8": "nncf",
    "openvino-int8": "nncf",
    "ctranslate2": "ctranslate2",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """One cache for this module: a model takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["cls", "mean"])
def tiny(request, tiny_bundle, tiny_mean_bundle, tiny_checkpoint):
    """A bundle, its checkpoint and pooling, and PyTorch's vectors of `TEXTS`."""
    bundle = {"cls": tiny_bundle, "mean": tiny_mean_bundle}[request.param]
    spec = SystemSpec(
        system="transformers", model=str(tiny_checkpoint), pooling=request.param, max_length=64,
        batch_size=1, threads=1,
    )  # fmt: skip
    return Bundle.open(bundle), tiny_checkpoint, spec, open_system(spec).encode(TEXTS)


def model(bundle: Bundle, checkpoint: Path, name: str, step=lambda _: None) -> Path:
    return int8_model(bundle, checkpoint, ("paragraphs", paragraphs(20)), step, name)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", INT8_BASELINES)
def test_a_system_is_near_pytorch_and_says_with_what(name, tiny):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    bundle, checkpoint, reference, expected = tiny
    spec = lineup.baseline_system(
        reference, name, checkpoint, lambda system: model(bundle, checkpoint, system)
    )
    system = open_system(replace(spec, batch_size=5))
    assert system.precision == "int8"
    assert ", 1 threads, batches of 5" in system.in_force
    assert ("calibrated on paragraphs" in system.in_force) == ("openvino" in name)
    vectors = system.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, expected.shape)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert not is_void(compare(vectors, expected), "int8", ours=False)
    assert is_void(compare(vectors[::-1], expected), "int8", ours=False)


@pytest.mark.usefixtures("cache")
def test_a_model_is_made_once_for_a_checkpoint_and_what_makes_it(
    tiny_bundle, tiny_mean_bundle, tiny_checkpoint, monkeypatch
):
    name, said = "sentence-transformers-onnx-int8", []
    first = model(Bundle.open(tiny_bundle), tiny_checkpoint, name)
    # Its pooling is no part of it.
    assert model(Bundle.open(tiny_mean_bundle), tiny_checkpoint, name, said.append) == first
    assert not said
    assert (first / dynamic_file()).is_file()
    assert not (first / "bge.json").exists()
    monkeypatch.setattr(int8_models, "installed_versions", lambda _: {"a": "2"})
    monkeypatch.setattr(int8_models, "_run", _fail)
    with pytest.raises(BenchError, match="no such luck"):
        model(Bundle.open(tiny_bundle), tiny_checkpoint, name, said.append)
    assert said == [f"{name}: make its int8 model"]
    assert [folder for folder in first.parent.iterdir() if folder.name.startswith("made-")] == []


def _fail(*_: object) -> None:
    raise BenchError("no such luck")


def test_a_model_that_cannot_be_made_says_why(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BenchError, match=r"could not be made; its last words:\n(.|\n)*nowhere"):
        model(Bundle.open(tiny_bundle), tmp_path / "nowhere", "sentence-transformers-onnx-int8")


def test_who_lacks_a_package_or_a_model_is_left_out(tiny_bundle, tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(lineup._PACKAGES, "ctranslate2", ("no_such_package",))
    monkeypatch.setitem(lineup._PACKAGES, "openvino-int8", ("openvino",))
    found, left_out = lineup.line_up(
        Bundle.open(tiny_bundle), tiny_checkpoint, baselines=["ctranslate2", "openvino-int8"],
        threads=1, int8_model=_fail,
    )  # fmt: skip
    assert [candidate.ours for candidate in found] == [True]
    assert left_out == {
        "ctranslate2": "no_such_package is not installed; pip install 'bge-runtime[bench]'",
        "openvino-int8": "no such luck",
    }


def test_it_is_calibrated_on_what_is_there(shared_data, tmp_path):
    source, texts = calibration_texts(shared_data / "text")
    assert (source, len(texts)) == ("xquad-en", 300)
    source, texts = calibration_texts(tmp_path)
    assert (source, len(texts)) == ("generated paragraphs", 300)


def test_no_usage_data_is_sent():
    pytest.importorskip("nncf")
    code = (
        "from bge_bench.systems.base import without_telemetry; without_telemetry(); "
        "from nncf.telemetry.wrapper import telemetry; print(type(telemetry).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["MagicMock"]
