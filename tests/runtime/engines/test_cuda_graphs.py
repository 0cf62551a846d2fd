"""Single short texts as CUDA graphs, and calls into CUDA, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime import FlagModel
from bge_runtime.engines.batch_arrays import graph_inputs
from bge_runtime.engines.cuda_graphs import CudaGraphEngine, CudaGraphs
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.engines.ort_providers import CPU_PROVIDER
from bge_runtime.errors import EngineError
from bge_runtime.sources import ENCODER_ONLY_M3
from tests.helpers.bundles import ROOT, export
from tests.helpers.gpu import HAS_DRIVER, HAS_PROVIDER
from tests.helpers.runtime import PROPERTY

IMITATION = ROOT / "tests" / "cuda_imitation"


@pytest.fixture(scope="module")
def bundle(tiny_gpu_bundle):
    return tiny_gpu_bundle


@pytest.fixture(scope="module")
def cuda_libraries(tmp_path_factory):
    """Libraries that imitate CUDA's and compute nothing."""
    if not HAS_PROVIDER or HAS_DRIVER or shutil.which("cc") is None:
        pytest.skip("needs the wheel for GPUs, no GPU and a C compiler: make gpu-wheel")
    folder = tmp_path_factory.mktemp("cuda")
    provider = Path(OrtCpuEngine.load().__file__).parent / "capi/libonnxruntime_providers_cuda.so"
    building = [sys.executable, IMITATION / "build.py", provider, folder]
    subprocess.run(building, check=True)
    return folder


@pytest.fixture(scope="module", params=["encoder", "m3"])
def calls(request, bundle, tiny_m3_checkpoint, tmp_path_factory, cuda_libraries):
    """Number of an engine's calls into CUDA, without CUDA graphs and with them."""
    if request.param == "m3":
        output = tmp_path_factory.mktemp("bundles") / "gpu-m3"
        bundle = export(tiny_m3_checkpoint, output, targets=("cuda",), model_class=ENCODER_ONLY_M3)
    counting = [sys.executable, IMITATION / "count_calls.py", cuda_libraries, bundle]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(cuda_libraries),
        # cuDNN would plan its attention for a GPU, which does not exist here.
        "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0",
    }
    found = subprocess.run(counting, env=environment, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def test_calling_threads_do_not_add_streams_and_handles(calls):
    # 24 threads call. ONNX Runtime creates a stream and a handle for each thread that calls it, and
    # a stream for each that reaches a branch. Here only two threads of the engine's call it.
    for kind in ("plain", "graphs"):
        assert calls[kind]["threads"]["kernels"] > 24 * 20
        assert calls[kind]["threads"]["streams"] <= 2 * 2
        assert calls[kind]["threads"]["handles"] <= 2 * 4


def test_a_cuda_graph_launches_a_short_text_with_one_call(calls):
    assert calls["graphs"]["in all"]["captured"] == 64
    for text in ("query", "longest"):
        found = calls["graphs"][text]
        assert (found["replayed"], found["kernels"], found["allocations"]) == (1, 0, 0)
        # Its tokens to the GPU, its vector back.
        assert (found["copies"], found["copies_in_stream"]) == (2, 0)
        assert calls["plain"][text]["kernels"] > 20


def test_a_vector_is_read_only_after_the_graph_has_finished(calls):
    # Neither the graph's stream nor the one that copies waits for the other.
    order = [name for name in calls["graphs"]["order"] if not name.startswith("cudaGet")]
    wait = "cudaStreamSynchronize"
    assert order == ["cudaMemcpy", wait, "cudaGraphLaunch", wait, "cudaMemcpy"]


def test_other_batches_run_as_without_cuda_graphs(calls):
    for text in ("longer", "two"):
        assert calls["graphs"][text]["replayed"] == 0
        assert calls["graphs"][text]["kernels"] == calls["plain"][text]["kernels"]
    assert calls["plain"]["in all"]["captured"] == 0


class CpuMemory:
    """A stand-in for onnxruntime that allocates a GPU's memory on the CPU."""

    def __init__(self):
        self.OrtValue, self._real = self, OrtCpuEngine.load()
        self.__version__ = self._real.__version__

    def ortvalue_from_numpy(self, array, device, index):
        assert (device, index) == ("cuda", 3)
        return self._real.OrtValue.ortvalue_from_numpy(array.copy())

    def ortvalue_from_shape_and_type(self, shape, dtype, device, index):
        assert (device, index) == ("cuda", 3)
        return self._real.OrtValue.ortvalue_from_shape_and_type(shape, dtype)


@pytest.fixture(scope="module")
def uniform_session(bundle):
    """A session of the graph for texts of one length, in a form for a CPU."""
    import onnx_ir as ir

    from bge_export.passes import EmulateHalfPrecision

    model = ir.load(bundle / "onnx" / "model_cuda_even_fp16.onnx")
    EmulateHalfPrecision()(model)
    file = bundle / "onnx" / f"emulated-{os.getpid()}.onnx"  # test workers share the bundle
    ir.save(model, file)
    ort = OrtCpuEngine.load()
    session = ort.InferenceSession(str(file), providers=[CPU_PROVIDER])
    file.unlink()
    return session


@pytest.fixture(scope="module")
def captured(uniform_session):
    options = OrtCpuEngine.load().RunOptions
    return CudaGraphs(CpuMemory(), uniform_session, lambda _: options(), index=3)


@PROPERTY
@given(texts=st.lists(st.lists(st.integers(5, 90), min_size=1, max_size=64), max_size=6))
def test_cuda_graphs_compute_each_texts_own_vector(captured, uniform_session, texts):
    names = {value.name for value in uniform_session.get_inputs()}
    for text in texts:
        ids = np.array([text])
        feeds = graph_inputs(names, ids, np.ones_like(ids))
        given_feeds = {name: feeds[name] for name in names}
        (expected,) = uniform_session.run(["sentence_embedding"], given_feeds)
        assert captured.accepts(len(text), ["sentence_embedding"])
        (vector,) = captured.run(feeds["input_ids"])
        np.testing.assert_array_equal(vector, expected)


@pytest.mark.parametrize(
    ("lengths", "outputs", "chosen"),
    [
        ([64], ["sentence_embedding"], "captured"),
        ([1], ["sentence_embedding"], "captured"),
        ([65], ["sentence_embedding"], "packed"),
        ([3, 3], ["sentence_embedding"], "packed"),
        ([1, 2], ["sentence_embedding"], "packed"),
        ([9], ["sentence_embedding", "token_weights"], "packed"),
    ],
)
def test_single_short_texts_go_to_the_cuda_graph_engine(captured, lengths, outputs, chosen):
    cuda_graph_engine, engine = object.__new__(CudaGraphEngine), object.__new__(OrtCudaEngine)
    cuda_graph_engine._graphs, engine.cuda_graph_engine = captured, cuda_graph_engine
    cuda_graph_engine._session = SimpleNamespace(run=lambda *_: "captured")
    engine._session = SimpleNamespace(run=lambda *_: "packed")
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    assert engine.run(mask, mask, outputs) == chosen


def test_a_failed_capture_is_an_error(uniform_session, monkeypatch):
    class Refusing:
        def __getattr__(self, name):
            return getattr(uniform_session, name)

        def run_with_iobinding(self, binding, options):
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(EngineError, match=r"of 1 tokens as a CUDA graph.*leave cuda_graphs out"):
        CudaGraphs(CpuMemory(), Refusing(), lambda _: None, index=3)


@pytest.mark.parametrize("options", [{}, {"engine": "onnxruntime"}])
def test_cuda_graphs_without_a_gpu_are_an_error(bundle, options):
    with pytest.raises(EngineError, match=r"requested cuda_graphs.*cpu.*devices='cuda'"):
        FlagModel(str(bundle), cuda_graphs=True, **options)
