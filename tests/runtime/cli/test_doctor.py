"""``bge-runtime doctor``: what is installed, what runs, what is wrong."""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_export.targets import ENCODER_TARGETS
from bge_runtime import FlagModel
from bge_runtime.cli import doctor, doctor_checks, doctor_verify
from bge_runtime.engines import openvino, ort_providers, tensorrt
from bge_runtime.engines.ort_providers import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER
from bge_runtime.errors import BundleIntegrityError
from bge_runtime.system import cpus, nvidia, versions
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.runtime import replace_file, scramble_reference


@pytest.fixture
def bundle(full_tiny_bundle, tmp_path):
    """The tiny BERT with every graph there is, of one's own."""
    return shutil.copytree(full_tiny_bundle, tmp_path / "copied")


def examine(*arguments):
    return CliRunner().invoke(doctor.main, ["doctor", *map(str, arguments)])


def row(output, start):
    (line,) = (line for line in output.splitlines() if line.startswith(start))
    return line.split()


def without(monkeypatch, *packages):
    """Make packages look as if they were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else real(name)
    )


def test_the_standard_variants_match_the_exporters_targets():
    exported = [
        (engine, precision)
        for target in ENCODER_TARGETS
        for _, engine, precision in target.variants
        if target.name not in ("portable", "cuda-even")
        and (not target.on_request or target.device == "cuda")
    ]
    assert exported == [(v.engine, v.precision) for v in doctor.STANDARD_REQUIREMENTS]


def test_a_healthy_installation():
    result = examine()
    assert result.exit_code == 0, result.output
    assert "WRONG" not in result.output
    bf16 = "BF16" in openvino.cpu_capabilities()
    default = row(result.output, "use_fp16=True")
    assert default[-3:] == (["openvino", "in", "bf16"] if bf16 else ["onnxruntime", "in", "fp32"])
    assert row(result.output, "use_fp16=False")[-3:] == ["onnxruntime", "in", "fp32"]


@pytest.mark.parametrize("extensions", [("avx2",), ("avx2", "avx512_vnni")])
def test_a_processor_without_products_of_8_bits_is_a_note(monkeypatch, extensions):
    monkeypatch.setattr(cpus, "vector_extensions", lambda: extensions)
    result = examine()
    assert result.exit_code == 0, result.output
    slower = "note: int8 is no faster than fp32 here, except for single short texts: this processor"
    assert (slower in result.output) == (extensions == ("avx2",))


def test_a_full_standard_output_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bge_runtime.cli.doctor", "doctor"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "bge-runtime: [Errno 28] No space left on device\n"


def test_a_processor_without_bf16_is_a_note(monkeypatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32",))
    result = examine()
    assert result.exit_code == 0
    assert "note: no 16-bit arithmetic: this processor does not compute in bf16" in result.output
    assert row(result.output, "use_fp16=True")[-3:] == ["onnxruntime", "in", "fp32"]
    assert row(result.output, "use_bf16=True")[-3:] == ["nothing:", "an", "error"]


@pytest.mark.parametrize(
    ("package", "wheels"),
    [
        ("onnxruntime", ["onnxruntime", "onnxruntime-gpu"]),
        ("onnxruntime", ["onnxruntime-openvino", "ort-nightly-directml"]),
        ("onnxruntime", ["onnxruntime", "onnxruntime-qnn", "onnxruntime-silicon"]),
        ("openvino", ["openvino", "openvino-nightly"]),
    ],
)
def test_several_wheels_of_one_engine_are_wrong(monkeypatch, package, wheels):
    found = {package: dict.fromkeys(wheels, "1.31.1")}
    monkeypatch.setattr(doctor_checks, "owners", lambda name: found.get(name, {name: "1.0"}))
    result = examine()
    assert result.exit_code == 1
    told = f"WRONG: {' and '.join(wheels)} are installed side by side and overwrite each other's"
    assert told in result.output
    assert f"pip uninstall {' '.join(wheels)}`" in result.output
    found[package] = {wheels[1]: "1.31.1"}
    assert "overwrite" not in examine().output


RECORD = "engine/a.py,sha256=x,1\nengine/__init__.py,sha256=x,1\n"


@pytest.mark.parametrize(
    ("info", "files", "owns"),
    [
        ("engine-1.0.dist-info", {"RECORD": RECORD}, True),
        ("engine_openvino-1.0.dist-info", {"RECORD": RECORD.replace("\n", "\r\n")}, True),
        ("nightly-1.0.dist-info", {"RECORD": "engine/__init__.py,,\n"}, True),
        ("engine_extensions-1.0.dist-info", {"RECORD": "engine_extensions/__init__.py,,\n"}, False),
        ("engine_parts-1.0.dist-info", {"RECORD": "other/engine/__init__.py,,\n"}, False),
        ("legacy-1.0.egg-info", {"top_level.txt": "other\nengine\n"}, True),
        ("legacy-1.0.egg-info", {"top_level.txt": "engine_tools\n"}, False),
        ("engine-1.0.dist-info", {}, True),
        ("engine_tools-1.0.dist-info", {}, False),
    ],
)
def test_the_owners_of_an_engine_are_known_by_their_files(tmp_path, monkeypatch, info, files, owns):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    name = info.partition("-")[0].replace("_", "-")
    for folder in (here, elsewhere):
        (folder / "engine").mkdir(parents=True)
        (folder / "engine" / "__init__.py").touch()
        (folder / info).mkdir()
        for file, content in files.items():
            (folder / info / file).write_text(content, newline="")
        version = "1.0" if folder == here else "2.0"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (folder / info / ("METADATA" if "dist" in info else "PKG-INFO")).write_text(metadata)
        monkeypatch.syspath_prepend(str(folder))
    # Another one later on the path is not imported, and does no harm.
    monkeypatch.syspath_prepend(str(here))
    assert versions.owners("engine") == ({name: "1.0"} if owns else {})


def test_a_missing_package_has_no_owners():
    assert versions.owners("no_such_engine") == {}
    assert list(versions.owners("tokenizers")) == ["tokenizers"]


def test_one_engine_missing_is_a_note_and_both_are_wrong(monkeypatch):
    without(monkeypatch, "openvino")
    result = examine()
    assert result.exit_code == 0
    assert "note: the engine openvino is not installed" in result.output
    without(monkeypatch, "onnxruntime")
    result = examine()
    assert result.exit_code == 1
    assert "WRONG: the engine onnxruntime is not installed" in result.output
    assert "pip install 'bge-runtime[cpu]'" in result.output


def test_an_engine_that_cannot_be_imported_is_wrong(monkeypatch):
    real = importlib.import_module

    def broken(name, *rest):
        if name == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    result = examine()
    assert result.exit_code == 1
    assert "WRONG: openvino is installed and cannot be imported: ImportError: libtbb" in (
        result.output
    )


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_broken_engine_does_not_break_anything_else(full_tiny_bundle, tmp_path, package, error):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}('libtbb.so.12: not found')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    told = python("-m", "bge_runtime.cli.doctor", "doctor")
    assert told.returncode == 1
    assert f"WRONG: {package} is installed and cannot be imported: {error}: libtbb" in told.stdout
    code = (
        "import sys; from bge_runtime import FlagModel; from bge_runtime.errors import BgeError\n"
        "try: print(FlagModel(sys.argv[1]).engine.info.variant)\n"
        "except BgeError as error: print(error)"
    )
    opened = python("-W", "ignore", "-c", code, str(full_tiny_bundle))
    assert opened.returncode == 0, opened.stderr
    if package == "openvino":
        assert opened.stdout == "cpu-fp32\n"
    else:
        bf16 = "BF16" in openvino.cpu_capabilities()
        expected = "openvino-bf16" if bf16 else "onnxruntime cannot be imported (libtbb"
        assert expected in opened.stdout


def test_a_relative_cache_is_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/there/yet")
    result = examine()
    assert str(tmp_path / "not/there/yet/bge-runtime") in result.output
    assert "cannot be written" not in result.output


def test_a_missing_home_folder_is_reported_and_breaks_nothing_else(full_tiny_bundle, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    result = examine()
    assert "there is no home folder for the cache; set XDG_CACHE_HOME" in result.output
    assert "checkpoints cannot be exported on demand" in result.output
    assert FlagModel(str(full_tiny_bundle)).encode("text").shape == (48,)


HOPPER = nvidia.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=141 << 30)
DRIVER = nvidia.Driver(version="580.65.06", cuda=(13, 0), gpus=(HOPPER,))


@pytest.fixture
def with_gpu(monkeypatch):
    """Make this machine look as if it had a GPU, a wheel for it, and a processor without lacks."""

    def make(
        *,
        driver=DRIVER,
        providers=(CUDA_PROVIDER, TENSORRT_PROVIDER, CPU_PROVIDER),
        packages=("onnxruntime-gpu",),
    ):
        monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32", "BF16", "INT8"))
        monkeypatch.setattr(doctor_checks, "multiplies_in_8_bits", lambda: True)
        wheels = {"onnxruntime": dict.fromkeys(packages, "1.31.1")}
        monkeypatch.setattr(doctor_checks, "owners", lambda name: wheels.get(name, {name: "1.0"}))
        monkeypatch.setattr(nvidia, "find_driver", lambda: driver)
        ort = ort_providers.load()
        monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers))
        monkeypatch.setattr(doctor_checks, "_cuda_of", lambda _: (13, 0))
        monkeypatch.setattr(ort_providers, "load_failure", lambda _: None)
        monkeypatch.setattr(tensorrt, "version", lambda: "10.14.1")
        monkeypatch.setattr(tensorrt, "newer_version", lambda: None)

    return make


def findings():
    return [
        (found.wrong, found.text)
        for found in doctor_checks.find_problems()
        if "openvino" not in found.text
    ]


def test_a_working_gpu_is_shown_without_a_finding(with_gpu):
    with_gpu()
    assert findings() == []
    output = examine().output
    assert row(output, "driver")[1:] == ["580.65.06,", "for", "CUDA", "up", "to", "13.0"]
    assert row(output, "cuda:0")[1:] == ["NVIDIA", "H200,", "141", "GiB,", "sm_9.0"]
    assert row(output, "tensorrt")[1] == "10.14.1"


def test_files_overwritten_by_the_cpu_package_are_wrong(with_gpu):
    with_gpu(providers=(CPU_PROVIDER,))
    ((wrong, text),) = findings()
    assert wrong
    assert "its files have no CUDA provider" in text
    assert "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1" in text


@pytest.mark.parametrize("wheel", ["onnxruntime", "onnxruntime-qnn"])
def test_a_gpu_that_the_package_does_not_support_is_a_note(with_gpu, wheel):
    with_gpu(providers=(CPU_PROVIDER,), packages=(wheel,))
    ((wrong, text),) = findings()
    assert not wrong
    assert f"NVIDIA H200 is not used: the installed package, {wheel}, has no CUDA provider" in text
    assert "pip install 'bge-runtime[cuda]'" in text


def test_no_driver_is_a_note(with_gpu):
    with_gpu(driver="this machine has no NVIDIA driver (libcuda.so.1)")
    assert findings() == [
        (False, "onnxruntime could use a GPU, but this machine has no NVIDIA driver (libcuda.so.1)")
    ]


def test_a_driver_too_old_is_wrong(with_gpu):
    with_gpu(driver=replace(DRIVER, version="550.1", cuda=(12, 4)))
    ((wrong, text),) = findings()
    assert wrong
    assert "driver 550.1 supports CUDA 12.4, and onnxruntime-gpu" in text
    assert "needs CUDA 13.0" in text


def test_a_provider_that_cannot_be_loaded_is_wrong(with_gpu, monkeypatch):
    with_gpu()
    monkeypatch.setattr(ort_providers, "load_failure", lambda _: "libcublas.so.13: no such file")
    assert findings() == [(True, "the GPU is not used: libcublas.so.13: no such file")]


def test_a_tensorrt_too_new_is_a_note(with_gpu, monkeypatch):
    with_gpu()
    monkeypatch.setattr(tensorrt, "version", lambda: None)
    assert findings() == []  # nobody has to have it
    monkeypatch.setattr(tensorrt, "newer_version", lambda: "11.4.0")
    ((wrong, text),) = findings()
    assert not wrong
    assert "TensorRT 11.4.0 is installed" in text
    assert "pip install tensorrt-cu13-libs==10." in text


def test_another_library_with_the_drivers_name_is_reported(monkeypatch):
    # Any library will do.
    monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", ctypes.util.find_library("c"))
    assert "is not NVIDIA's driver" in nvidia.find_driver()


def test_verify_measures_every_variant(bundle):
    result = examine("--verify", bundle)
    assert result.exit_code == 0, result.output
    variants = json.loads((bundle / "bge.json").read_text())["variants"]
    assert len(variants) == 4
    for variant in variants:
        assert row(result.output, variant["name"])[-1] in ("pass", "here")


def test_one_changed_byte_of_the_weights_is_found_by_doctor_and_by_opening(bundle):
    weights = bundle / "onnx" / "model.onnx_data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match=r"model\.onnx_data has changed"):
        FlagModel(str(bundle))
    result = examine("--verify", bundle)
    assert result.exit_code == 1
    assert "model.onnx_data has changed since it was exported" in result.output


def test_verify_hashes_weights_again(bundle, monkeypatch):
    FlagModel(str(bundle))  # their hashes are remembered from now on
    hashed = []
    real = doctor_verify.Bundle.check_files

    def check(self, **options):
        hashed.append(options)
        real(self, **options)

    monkeypatch.setattr(doctor_verify.Bundle, "check_files", check)
    assert examine("--verify", bundle).exit_code == 0
    assert hashed == [{"hash_weights": True}]


def test_a_variant_that_is_too_far_from_pytorch_fails(bundle):
    scramble_reference(bundle)
    result = examine("--verify", bundle)
    assert result.exit_code == 1
    assert row(result.output, "cpu-fp32")[-1] == "FAIL"
    assert "FAIL: cpu-fp32: minimum cosine" in result.output


def test_other_tokens_fail(bundle):
    data = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    data["normalizer"] = None
    replace_file(bundle, "tokenizer.json", json.dumps(data).encode())
    result = examine("--verify", bundle)
    assert result.exit_code == 1
    assert "gives other tokens for" in result.output


def test_a_variant_that_this_machine_cannot_run_is_reported_but_not_a_failure(bundle, monkeypatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32",))
    result = examine("--verify", bundle)
    assert result.exit_code == 0, result.output
    assert row(result.output, "openvino-bf16")[-2:] == ["not", "here"]


def test_a_reranker_is_verified_on_its_pairs(made_once, tmp_path):
    bundle = Path(shutil.copytree(reranker_bundle("bert"), tmp_path / "copied"))
    result = examine("--verify", bundle)
    assert result.exit_code == 0, result.output
    assert "rank correlation at export" in result.output
    assert row(result.output, "cpu-fp32")[-4:-2] == ["1.0000", "1.0000"]
    assert row(result.output, "cpu-fp32")[-1] == "pass"
    data = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    for pair in (data["post_processor"], data["normalizer"]):
        before = dict(pair)
        pair.update({"cls": ["[PAD]", 0]} if "cls" in pair else {"lowercase": False})
        replace_file(bundle, "tokenizer.json", json.dumps(data).encode())
        told = examine("--verify", bundle)
        assert told.exit_code == 1
        assert "gives other tokens for" in told.output
        pair.update(before)


def test_no_bundle_is_an_error_and_nothing_is_exported(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = examine("--verify", tiny_checkpoint)
    assert result.exit_code == 1
    assert "FAIL: no bundle at" in result.output
    assert not (tmp_path / "bge-runtime" / "bundles").exists()
