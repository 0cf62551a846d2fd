"""Parity that was not measured during the export is measured on this machine, once."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

from bge_runtime import Bundle, FlagModel
from bge_runtime.engines import ort_providers
from bge_runtime.errors import PrecisionError
from bge_runtime.system import nvidia
from bge_runtime.variants import parity_check
from tests.helpers.runtime import (
    TEXTS,
    assert_same,
    edit_manifest,
    replace_file,
    scramble_reference,
)

ENGINE = "onnxruntime"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The names of the variants that were measured, in order; the cache is empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = []
    real = parity_check.measure_parity

    def recorded(bundle, variant, reference=None):
        names.append(variant.name)
        return real(bundle, variant, reference)

    monkeypatch.setattr(parity_check, "measure_parity", recorded)
    return names


@pytest.fixture
def unmeasured(bundle_copy):
    """A bundle from a machine that could not run any of its variants."""

    def forget(data):
        for variant in data["variants"]:
            variant["parity"] = None

    edit_manifest(bundle_copy, forget)
    return bundle_copy


def test_an_unmeasured_variant_is_measured_once(unmeasured, measured, model):
    for _ in range(2):
        taken = FlagModel(str(unmeasured))
        assert taken.engine.info.variant == "cpu-fp32"
        assert_same(taken.encode(TEXTS), model.encode(TEXTS), tolerance=0)
    assert measured == ["cpu-fp32"]


def test_a_measured_variant_is_not_measured_again(tiny_bundle, measured):
    FlagModel(str(tiny_bundle))
    assert measured == []


def test_an_unreadable_cached_result_is_measured_again(unmeasured, measured, tmp_path):
    FlagModel(str(unmeasured))
    (note,) = (tmp_path / "cache" / "bge-runtime" / "parity").iterdir()
    for content in ("", "[]", "null", "{}", '{"texts": "many"}', "[" * 100_000, "\udcff"):
        note.write_bytes(content.encode("utf-8", "surrogateescape"))
        measured.clear()
        FlagModel(str(unmeasured))
        assert measured == ["cpu-fp32"]


def test_another_graph_is_measured_again(unmeasured, measured):
    FlagModel(str(unmeasured))
    graph = unmeasured / "onnx" / "model_cpu_fp32.onnx"
    # A field that protobuf does not know changes the file and nothing else.
    replace_file(unmeasured, "onnx/model_cpu_fp32.onnx", graph.read_bytes() + b"\xf8\x3f\x00")
    FlagModel(str(unmeasured))
    assert measured == ["cpu-fp32", "cpu-fp32"]


def test_another_processor_of_the_same_name_is_measured_again(unmeasured, measured, monkeypatch):
    # Virtual machines report one name for all, and may share a home folder.
    for extensions in (("avx2",), ("avx2", "avx512f"), ("avx2",)):
        monkeypatch.setattr(parity_check, "vector_extensions", lambda found=extensions: found)
        FlagModel(str(unmeasured))
    assert measured == ["cpu-fp32", "cpu-fp32"]


def test_another_wheel_of_the_engine_is_measured_again(unmeasured, measured, monkeypatch):
    def wheel(name, version):
        wheels = {} if name is None else {name: version}
        monkeypatch.setattr(
            parity_check, "owners", lambda package: wheels if package == ENGINE else {}
        )

    for name, version in (
        ("onnxruntime", "1.31.1"),
        ("onnxruntime", "1.32.0"),
        ("onnxruntime-openvino", "1.32.0"),
        ("ort-nightly", "1.32.0"),
        (None, None),
    ):
        measured.clear()
        for _ in range(2):
            wheel(name, version)
            FlagModel(str(unmeasured), engine=ENGINE)
        assert measured == ["cpu-fp32"], (name, version)
    measured.clear()
    wheel("onnxruntime", "1.32.0")
    FlagModel(str(unmeasured), engine=ENGINE)
    # A wheel of unknown origin is identified by the version that it reports.
    wheel(None, None)
    monkeypatch.setattr(ort_providers.load(), "__version__", "1.99")
    FlagModel(str(unmeasured), engine=ENGINE)
    assert measured == ["cpu-fp32"]


def test_another_gpu_is_measured_again(tiny_bundle, measured, monkeypatch):
    bundle = Bundle.at(tiny_bundle)
    variant = replace(bundle.manifest.variants[0], device="cuda")
    asked = []

    def measure(_, variant):
        asked.append(driver.gpus[0].name)
        return None, variant.parity

    monkeypatch.setattr(parity_check, "measure_parity", measure)
    for name in ("NVIDIA H100", "NVIDIA L4", "NVIDIA H100"):
        gpu = nvidia.Gpu(name=name, compute_capability="9.0", memory_bytes=2**36)
        driver = nvidia.Driver(version="580.65.06", cuda=(13, 0), gpus=(gpu,))
        monkeypatch.setattr(nvidia, "find_driver", lambda driver=driver: driver)
        assert parity_check.cached_parity(bundle, variant) == variant.parity
    assert asked == ["NVIDIA H100", "NVIDIA L4"]


def test_a_variant_that_fails_is_skipped_with_a_warning(unmeasured, measured):
    scramble_reference(unmeasured)
    with (
        pytest.warns(UserWarning, match="skipping variant .* fails the parity check") as given,
        pytest.raises(PrecisionError, match="doctor --verify"),
    ):
        FlagModel(str(unmeasured))
    assert len(given) == len(measured) == len(set(measured))


def test_a_requested_precision_is_used_without_a_parity_check(unmeasured, measured, model):
    scramble_reference(unmeasured)
    with warnings.catch_warnings(action="error"):
        named = FlagModel(str(unmeasured), precision="fp32")
    assert_same(named.encode(TEXTS), model.encode(TEXTS), tolerance=0)
    assert measured == []
