"""A bundle with variants for CUDA on a machine without it: unused, and errors with their cause."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_runtime import FlagLLMModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.cli import doctor
from bge_runtime.engines import ENGINES, open_engine, unavailable_reason
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.errors import DeviceError, EngineError, PrecisionError, ProviderError
from bge_runtime.system import nvidia
from bge_runtime.variants.parity_check import measure_parity
from tests.helpers.decoders import export_decoder, write_tiny_decoder
from tests.helpers.runtime import edit_manifest

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in OrtCpuEngine.load().get_available_providers(),
    reason="this machine's onnxruntime has the CUDA provider",
)

NO_PROVIDER = r"the installed onnxruntime \S+ has no CUDAExecutionProvider"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A tiny decoder for the CPU in fp32, and for CUDA in both 16-bit types."""
    folder = tmp_path_factory.mktemp("with-cuda")
    checkpoint = write_tiny_decoder(folder / "checkpoint")
    precisions = ("fp32", "bf16", "fp16")
    return export_decoder(
        checkpoint, folder / "bundle", targets=("cpu", "cuda"), precisions=precisions
    )


@pytest.fixture
def cuda_only(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that was exported for CUDA only."""

    def keep(data):
        data["variants"] = [v for v in data["variants"] if v["device"] == "cuda"]

    copied = Path(shutil.copytree(bundle, tmp_path / "copied"))
    edit_manifest(copied, keep)
    return copied


def variant(bundle: Path, name: str):
    return next(v for v in Bundle.at(bundle).manifest.variants if v.name == name)


@pytest.mark.parametrize("options", [{}, {"use_fp16": False}, {"precision": "fp32"}])
def test_cuda_is_never_used_unless_requested(bundle: Path, options: dict):
    assert FlagLLMModel(str(bundle), **options).engine.info.device == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0])
@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"use_bf16": True}])
def test_requesting_cuda_is_an_error_with_its_cause(bundle: Path, device, options: dict):
    with pytest.raises(
        ProviderError,
        match=rf"requested device 'cuda', where variant 'cuda-\w+' .*{NO_PROVIDER}.*"
        r"devices='cpu'.*bge-runtime\[cuda\]",
    ):
        FlagLLMModel(str(bundle), devices=device, **options)


def test_requesting_a_precision_of_cuda_variants_only_is_an_error(bundle: Path):
    with pytest.raises(
        PrecisionError,
        match=rf"'fp16' on cpu.*cuda-fp16 has it\. Pass devices='cuda' \(.*{NO_PROVIDER}\)",
    ):
        FlagLLMModel(str(bundle), precision="fp16")


def test_requesting_another_engine_on_cuda_is_an_error(bundle: Path):
    with pytest.raises(EngineError, match=r"'openvino' on cuda.*has variants for onnxruntime"):
        FlagLLMModel(str(bundle), devices="cuda", engine="openvino")


def test_a_bundle_for_cuda_only_names_the_device_to_pass(cuda_only: Path):
    with pytest.raises(
        DeviceError, match=rf"'cpu'.*variants for cuda only\. Pass devices='cuda' \(.*{NO_PROVIDER}"
    ):
        FlagLLMModel(str(cuda_only))


def test_measuring_a_cuda_variant_is_an_error_with_its_cause(bundle: Path):
    with pytest.raises(ProviderError, match=NO_PROVIDER):
        measure_parity(Bundle.open(bundle), variant(bundle, "cuda-bf16"))


def test_doctor_verifies_what_runs_and_reports_what_does_not(bundle: Path):
    result = CliRunner().invoke(doctor.main, ["doctor", "--verify", str(bundle)])
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if line}
    assert rows["cpu-fp32"].endswith("pass")
    for name in ("cuda-bf16", "cuda-fp16"):
        assert rows[name].endswith("not here")
        assert "has no CUDAExecutionProvider" in rows[name]
        assert "not measured" in rows[name]


def test_doctor_reports_why_no_variant_runs(cuda_only: Path):
    result = CliRunner().invoke(doctor.main, ["doctor", "--verify", str(cuda_only)])
    assert result.exit_code == 1
    assert (
        "FAIL: this machine can run none of its variants: the installed onnxruntime"
        in result.output
    )
    assert "has no CUDAExecutionProvider" in result.output


def test_a_missing_driver_is_named_as_the_cause(bundle: Path, monkeypatch):
    ort = OrtCpuEngine.load()
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", "libnone.so.0")
    reason = "this machine has no NVIDIA driver"
    assert reason in str(unavailable_reason(variant(bundle, "cuda-bf16").requirement))
    with pytest.raises(ProviderError, match=reason):
        FlagLLMModel(str(bundle), devices="cuda")


def test_a_session_that_falls_back_is_an_error(bundle: Path, monkeypatch):
    # As if the provider could not be loaded: ONNX Runtime then continues without it.
    monkeypatch.setattr(OrtCudaEngine, "unavailable_reason", staticmethod(lambda _: None))
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ProviderError, match=r"requested CUDA.*is running on \['CPU"),
    ):
        FlagLLMModel(str(bundle), devices="cuda", precision="fp16")


def test_a_device_is_opened_by_its_number(bundle: Path, monkeypatch):
    ort = OrtCpuEngine.load()
    asked = []

    class Session(ort.InferenceSession):
        def __init__(self, path, options, providers, enable_fallback):
            assert not enable_fallback  # which would continue on the CPU
            asked.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(OrtCudaEngine, "unavailable_reason", staticmethod(lambda _: None))
    monkeypatch.setattr(ort, "InferenceSession", Session)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ProviderError):
            FlagLLMModel(str(bundle), devices=device, precision="fp16")
    assert [name for name, _ in asked] == ["CUDAExecutionProvider"] * 2
    assert [options.get("device_id", "0") for _, options in asked] == ["0", "1"]


@pytest.mark.parametrize("engine", list(ENGINES))
def test_an_unknown_kind_of_device_is_an_error(bundle: Path, engine: str):
    unknown = replace(variant(bundle, "cuda-bf16"), device="tpu", engine=engine)
    assert f"{engine} engine serves c" in str(unavailable_reason(unknown.requirement))
    with pytest.raises(DeviceError, match="tpu"):
        open_engine(Bundle.at(bundle), unknown)
