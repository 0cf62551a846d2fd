"""OpenVINO: when it is chosen, how it runs, and parity within the tolerance of its precision."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import Bundle, FlagModel
from bge_runtime.bundle.parity import compare
from bge_runtime.engines import openvino
from bge_runtime.errors import (
    EngineNotInstalledError,
    InferenceError,
    PrecisionError,
    ProviderError,
)
from tests.helpers.bundles import export
from tests.helpers.flag_embedding import MANY_TEXTS

computes_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.cpu_capabilities(), reason="this processor does not compute in bf16"
)


@pytest.fixture(scope="module")
def bundle(full_tiny_bundle: Path) -> Path:
    return full_tiny_bundle


@pytest.fixture(scope="module")
def trained(full_minilm_bundle: Path) -> Path:
    return full_minilm_bundle


@computes_bf16
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("openvino", "bf16", "openvino-bf16")),
        ({"use_bf16": True}, ("openvino", "bf16", "openvino-bf16")),
        ({"use_fp16": False}, ("onnxruntime", "fp32", "cpu-fp32")),
        ({"use_fp16": False, "engine": "openvino"}, ("openvino", "fp32", "openvino-fp32")),
        ({"engine": "onnxruntime"}, ("onnxruntime", "fp32", "cpu-fp32")),
        ({"engine": "openvino"}, ("openvino", "bf16", "openvino-bf16")),
        ({"precision": "fp32"}, ("onnxruntime", "fp32", "cpu-fp32")),
    ],
)
def test_the_requested_engine_and_precision_run(bundle: Path, options: dict, expected: tuple):
    model = FlagModel(str(bundle), **options)
    info = model.engine.info
    assert (info.engine, info.precision, info.variant) == expected
    vectors = model.encode(["one", "two"])
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_auto_uses_onnxruntime_where_openvino_is_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert FlagModel(str(bundle)).engine.info.variant == "cpu-fp32"
    with pytest.raises(EngineNotInstalledError, match=r"pip install 'bge-runtime\[cpu\]'"):
        FlagModel(str(bundle), engine="openvino")


def test_auto_uses_openvino_in_fp32_where_onnxruntime_is_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert FlagModel(str(bundle), use_fp16=False).engine.info.variant == "openvino-fp32"


def test_a_processor_without_bf16_runs_fp32(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino, "cpu_capabilities", lambda: ("FP32",))
    assert FlagModel(str(bundle)).engine.info.variant == "cpu-fp32"
    with pytest.raises(PrecisionError, match="neither AVX512-BF16 nor AMX"):
        FlagModel(str(bundle), use_bf16=True)


def test_an_export_without_bf16_hardware_does_not_measure_bf16(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_runtime.bundle.bundle import Bundle

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "cpu_capabilities", lambda: ("FP32",))
        export(tiny_checkpoint, tmp_path / "bundle", targets=())
    variants = {v.name: v for v in Bundle.open(tmp_path / "bundle").manifest.variants}
    assert variants["openvino-bf16"].parity is None
    assert variants["openvino-fp32"].parity is not None
    # A processor with bf16 measures the variant and uses it.
    expected = "openvino-bf16" if "BF16" in openvino.cpu_capabilities() else "cpu-fp32"
    assert FlagModel(str(tmp_path / "bundle")).engine.info.variant == expected


def test_biases_are_corrected_for_bf16_only_where_that_helps(bundle: Path, trained: Path):
    def graph(folder: Path) -> str:
        opened = Bundle.open(folder)
        (variant,) = (v for v in opened.manifest.variants if v.name == "openvino-bf16")
        return opened.graph(variant.graph).file

    assert graph(bundle) == "openvino/bf16.xml"
    assert graph(trained) == "openvino/openvino_model.xml"
    assert not (trained / "openvino" / "bf16.xml").exists()


def test_corrected_biases_share_the_weights_with_the_graph_for_other_tools(bundle: Path):
    import openvino

    folder = bundle / "openvino"
    names = ("openvino_model", "bf16")
    texts = [(folder / name).with_suffix(".xml").read_text("utf-8") for name in names]
    assert texts[0] != texts[1]
    weights = folder / "openvino_model.bin"
    constants = re.findall(r'offset="(\d+)" size="(\d+)"', texts[1])
    assert max(int(offset) + int(size) for offset, size in constants) == weights.stat().st_size
    assert weights.stat().st_size < 0.55 * (bundle / "onnx" / "model.onnx_data").stat().st_size
    ids = np.array([[101, 2023, 2003, 102]])
    vectors = []
    for name in names:
        model = openvino.Core().read_model((folder / name).with_suffix(".xml"), weights)
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found = compiled(feeds | {"token_type_ids": np.zeros_like(ids)})["sentence_embedding"]
        vectors.append(found / np.linalg.norm(found))
    # In fp32 the correction is an error, as large as the one it corrects in bf16.
    assert 1e-4 < np.abs(vectors[0] - vectors[1]).max() < 1e-2


def test_running_in_another_precision_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    import openvino

    compile_model = openvino.Core.compile_model

    class InAnotherPrecision:
        """A compiled model that reports bf16, which not every processor could compile."""

        def __init__(self, compiled):
            self.compiled = compiled

        def get_property(self, name):
            hint = name == "INFERENCE_PRECISION_HINT"
            return openvino.Type.bf16 if hint else self.compiled.get_property(name)

    def in_another_precision(*arguments):
        return InAnotherPrecision(compile_model(*arguments))

    monkeypatch.setattr(openvino.Core, "compile_model", in_another_precision)
    with pytest.raises(ProviderError, match=r"requested f32 on CPU, but .* runs in bf16"):
        FlagModel(str(bundle), use_fp16=False, engine="openvino")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=computes_bf16)])
def test_trained_weights_against_flag_embedding(
    trained: Path, minilm_vectors: Callable[[str], np.ndarray], precision: str
):
    model = FlagModel(str(trained), engine="openvino", precision=precision)
    assert (model.engine.info.engine, model.engine.info.precision) == ("openvino", precision)
    parity = compare(model.encode(MANY_TEXTS), minilm_vectors("mean"))
    assert parity.failures(precision) == [], parity
    assert parity.min_cosine >= 0.9999  # the table allows less, for seeded weights


@computes_bf16
def test_gate_refuses_an_ignored_mask_in_bf16(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_runtime.errors import ExportError
    from bge_runtime.variants import parity_check

    pad_batch = parity_check.pad_batch

    def without_mask(rows, *, pad_token_id):
        ids, mask = pad_batch(rows, pad_token_id=pad_token_id)
        return ids, np.ones_like(mask)

    monkeypatch.setattr(parity_check, "pad_batch", without_mask)
    with pytest.raises(ExportError, match=r"openvino/bf16\.xml in bf16 .* is too far"):
        export(tiny_checkpoint, tmp_path / "bundle", targets=())


def test_concurrent_calls_return_what_single_calls_do(bundle: Path):
    model = FlagModel(str(bundle), engine="openvino", use_fp16=False)
    calls = [[f"text {n} of call {call}" * n for n in range(1, 9)] for call in range(8)]
    expected = [model.encode(texts) for texts in calls]
    with ThreadPoolExecutor(8) as pool:
        for found, alone in zip(pool.map(model.encode, calls * 4), expected * 4, strict=True):
            np.testing.assert_allclose(found, alone, atol=1e-6)


def test_a_model_works_after_a_failed_run(bundle: Path):
    model = FlagModel(str(bundle), engine="openvino", use_fp16=False)
    before = model.encode("text")
    with pytest.raises(InferenceError, match="batch of 1 texts"):
        model.engine.run(np.ones((1, 3), np.int64), np.ones((2, 5), np.int64), ["nothing"])
    np.testing.assert_array_equal(model.encode("text"), before)


@computes_bf16  # elsewhere OpenVINO opens a graph without other outputs
def test_hidden_states_are_not_computed(bundle: Path):
    engine = FlagModel(str(bundle), engine="openvino").engine
    (output,) = engine._model.compiled.outputs
    assert output.any_name == "sentence_embedding"
    batch = np.ones((1, 3), np.int64)
    (hidden,) = engine.run(batch, batch, ["last_hidden_state"])  # unless requested
    assert hidden.shape == (1, 3, 48)
    with pytest.raises(InferenceError):
        engine.run(batch, batch, ["no such output"])


SHAPES = """
import sys
import numpy as np, psutil
from bge_runtime import FlagModel
from bge_runtime.engines import openvino
if sys.argv[2] != "ours":
    openvino._KERNELS_KEPT = sys.argv[2]
engine = FlagModel(sys.argv[1], engine="openvino", use_fp16=False).engine
def run(shapes):
    for rows, columns in shapes:
        ids = np.full((rows, columns), 1500)
        engine.run(ids, np.ones_like(ids), ["sentence_embedding"])
shapes = [(rows, columns) for columns in range(128, 0, -1) for rows in range(1, 10)]
run(shapes[:576])
before = psutil.Process().memory_info().rss
run(shapes[576:])
print(psutil.Process().memory_info().rss - before)
"""


def test_memory_does_not_grow_with_the_number_of_shapes(bundle: Path):
    def growth(kept: str) -> int:
        return int(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", SHAPES, bundle, kept],
                check=True, capture_output=True, text=True, timeout=300,
            ).stdout
        )  # fmt: skip

    assert growth("ours") < growth("5000") / 3


def test_a_forked_child_opens_its_own_engine(bundle: Path, tmp_path: Path):
    program = f"""
import os, signal, sys
import numpy as np
from bge_runtime import FlagModel
model = FlagModel({str(bundle)!r}, engine="openvino", use_fp16=False)
expected = model.encode(["a", "b c"])
child = os.fork()
if child == 0:
    signal.alarm(30)
    sys.exit(0 if np.array_equal(model.encode(["a", "b c"]), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(model.encode(["a", "b c"]), expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_signal_after_a_model_was_replaced_is_handled(full_tiny_bundle):
    # Cores that were destroyed in the order of their creation left a freed stack for handlers.
    program = """
import signal, sys
from bge_runtime import FlagModel

for threads in (1, 2):
    model = FlagModel(sys.argv[1], engine="openvino", use_fp16=False, threads=threads)
del model
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, full_tiny_bundle],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "handled\n")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("environment", [{}, {"OMP_NUM_THREADS": "1"}], ids=["asked", "by OMP"])
def test_processes_with_few_threads_do_not_share_the_first_processor(bundle: Path, environment):
    """OpenVINO's default binds threads: two processes with one of two were as slow as one."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    program = (
        "import pathlib, sys; from bge_runtime import FlagModel\n"
        "threads = int(sys.argv[2]) or None\n"
        "model = FlagModel(sys.argv[1], engine='openvino', precision='fp32', threads=threads)\n"
        "model.encode(['one'])\n"
        "for path in pathlib.Path('/proc/self/task').glob('*/status'):\n"
        "    print(path.read_text().partition('Cpus_allowed:')[2].split()[0])\n"
    )
    threads = "0" if environment else "1"
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle), threads],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(set(done.stdout.split())) == 1
