"""``bge-runtime doctor``: what is installed, what runs, what is wrong."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil

import pytest
from click.testing import CliRunner

from bge_export.targets import TARGETS
from bge_runtime import FlagModel, doctor
from bge_runtime.engines import ov
from bge_runtime.errors import BundleIntegrityError
from tests.conftest import export
from tests.runtime.support import replace_file
from tests.runtime.test_selection import scramble_reference


@pytest.fixture(scope="module")
def whole_bundle(tiny_checkpoint, tmp_path_factory):
    """The tiny BERT with every graph there is."""
    return export(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny", targets=())


@pytest.fixture
def bundle(whole_bundle, tmp_path):
    """One of one's own."""
    return shutil.copytree(whole_bundle, tmp_path / "copied")


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
    versions = doctor.installed_versions

    def installed(names):
        return {name: v for name, v in versions(names).items() if name not in packages}

    monkeypatch.setattr(doctor, "installed_versions", installed)


def test_the_table_is_that_of_the_exporter():
    exported = [
        (engine, precision)
        for target in TARGETS
        for _, engine, precision in target.variants
        if target.name != "portable" and not target.on_request
    ]
    assert exported == [(v.engine, v.precision) for v in doctor.STANDARD_VARIANTS]


def test_a_sound_installation():
    result = examine()
    assert result.exit_code == 0, result.output
    assert "WRONG" not in result.output
    bf16 = "BF16" in ov._cpu_capabilities()
    default = row(result.output, "use_fp16=True")
    assert default[-3:] == (["openvino", "in", "bf16"] if bf16 else ["onnxruntime", "in", "fp32"])
    assert row(result.output, "use_fp16=False")[-3:] == ["onnxruntime", "in", "fp32"]


def test_a_processor_without_bf16_is_a_note(monkeypatch):
    monkeypatch.setattr(ov, "_cpu_capabilities", lambda: ("FP32",))
    result = examine()
    assert result.exit_code == 0
    assert "note: no 16-bit arithmetic: this processor does not compute in bf16" in result.output
    assert row(result.output, "use_fp16=True")[-3:] == ["onnxruntime", "in", "fp32"]
    assert row(result.output, "use_bf16=True")[-3:] == ["nothing:", "an", "error"]


def test_both_wheels_of_onnxruntime_are_wrong(monkeypatch):
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(doctor, "installed_versions", lambda names: both)
    result = examine()
    assert result.exit_code == 1
    assert "WRONG: onnxruntime and onnxruntime-gpu are both installed" in result.output
    assert "pip uninstall onnxruntime onnxruntime-gpu" in result.output


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
    real = doctor.Bundle.check_files

    def check(self, **options):
        hashed.append(options)
        real(self, **options)

    monkeypatch.setattr(doctor.Bundle, "check_files", check)
    assert examine("--verify", bundle).exit_code == 0
    assert hashed == [{"hash_weights": True}]


def test_a_variant_that_is_too_far_fails(bundle):
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


def test_a_variant_that_this_machine_cannot_run_is_said_and_is_no_failure(bundle, monkeypatch):
    monkeypatch.setattr(ov, "_cpu_capabilities", lambda: ("FP32",))
    result = examine("--verify", bundle)
    assert result.exit_code == 0, result.output
    assert row(result.output, "openvino-bf16")[-2:] == ["not", "here"]


def test_no_bundle_is_an_error_and_nothing_is_exported(tiny_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = examine("--verify", tiny_checkpoint)
    assert result.exit_code == 1
    assert "FAIL: no bundle at" in result.output
    assert not (tmp_path / "bge-runtime" / "bundles").exists()
