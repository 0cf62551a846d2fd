"""Requesting a GPU on a machine without one: never used unasked, and errors with their cause."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.engines import open_engine, ort_providers, tensorrt
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_providers import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER
from bge_runtime.errors import DeviceError, EngineError, ProviderError
from tests.helpers.gpu import HAS_PROVIDER, WITHOUT_GPU, find_variant


@pytest.fixture(scope="module")
def bundle(tiny_gpu_bundle):
    return tiny_gpu_bundle


@WITHOUT_GPU
@pytest.mark.parametrize("options", [{}, {"engine": "onnxruntime"}, {"engine": "tensorrt"}])
@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0])
def test_requesting_a_missing_gpu_is_an_error_with_its_cause(bundle, device, options):
    cause = "no NVIDIA driver" if HAS_PROVIDER else r"has no \w+ExecutionProvider"
    with pytest.raises(ProviderError, match=rf"requested device 'cuda'.*{cause}.*devices='cpu'"):
        FlagModel(str(bundle), devices=device, **options)


def test_a_gpu_is_never_used_unless_requested(bundle):
    assert FlagModel(str(bundle)).engine.info.device == "cpu"


def test_tensorrt_does_not_run_on_a_cpu(bundle):
    with pytest.raises(EngineError, match="requested engine 'tensorrt' on cpu"):
        FlagModel(str(bundle), engine="tensorrt")
    on_cpu = replace(find_variant(bundle, "tensorrt-fp16"), device="cpu")
    with pytest.raises(DeviceError, match="tensorrt engine serves cuda"):
        open_engine(Bundle.open(bundle), on_cpu)


@WITHOUT_GPU
@pytest.mark.parametrize("provider", [CUDA_PROVIDER, TENSORRT_PROVIDER])
def test_a_session_that_falls_back_to_the_cpu_is_an_error(bundle, provider, capsys):
    ort = OrtCpuEngine.load()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # A graph that the CPU could run as well.
    path = Bundle.at(bundle).path / "onnx" / "model.onnx"
    asked = [(provider, {"device_id": "0"})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ProviderError, match=rf"{provider}.*cannot open shared object"):
            ort_providers.open_session(ort, path, options, asked)
        assert "requested" in ort_providers.load_failure(provider)
    assert capsys.readouterr().out == ""
    assert ort_providers.load_failure(CPU_PROVIDER) is None


@pytest.mark.skipif(not HAS_PROVIDER, reason="this onnxruntime is the wheel for CPUs")
def test_onnxruntime_gpu_knows_all_provider_options(bundle):
    capi = Path(OrtCpuEngine.load().__file__).parent / "capi"
    engine = object.__new__(tensorrt.TensorRtEngine)
    engine._index, engine._graph = 0, SimpleNamespace(inputs=("input_ids",))
    for name, options in (
        ("cuda", ort_providers.cuda_options(0)),
        ("tensorrt", engine.options(tensorrt.profiles(512)[0], Path("cache"))),
    ):
        library = (capi / f"libonnxruntime_providers_{name}.so").read_bytes()
        for option in options:
            assert option.encode() in library, option
