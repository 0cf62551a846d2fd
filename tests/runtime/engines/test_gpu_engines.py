"""What can be shown of the engines for a GPU where there is none."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import Parity
from bge_runtime.encoding import pipeline
from bge_runtime.engines import EngineOptions, open_engine, ort_cuda, ort_providers, tensorrt
from bge_runtime.engines.base import inference_error
from bge_runtime.engines.batch_arrays import graph_inputs
from bge_runtime.engines.cuda_graphs import CudaGraphEngine, CudaGraphs
from bge_runtime.engines.cuda_threads import CudaThreads
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.engines.ort_providers import CPU, CUDA, TENSORRT
from bge_runtime.engines.ort_session import OrtSession
from bge_runtime.errors import (
    DeviceError,
    EngineError,
    InferenceError,
    OutOfMemoryError,
    ProviderError,
)
from bge_runtime.sources import ENCODER_ONLY_M3
from bge_runtime.system import nvidia
from bge_runtime.variants.selection import select_cuda_graph_variant, select_variant
from tests.helpers.bundles import ROOT, export
from tests.helpers.runtime import PROPERTY, TEXTS, WrappedEngine

HAS_PROVIDER = CUDA in OrtCpuEngine.load().get_available_providers()
HAS_DRIVER = isinstance(nvidia.find_driver(), nvidia.Driver)
WITHOUT_GPU = pytest.mark.skipif(HAS_DRIVER, reason="this machine has a GPU")

IMITATION = ROOT / "tests" / "cuda_imitation"

HOPPER = nvidia.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=141 << 30)
DRIVER = nvidia.Driver(version="580.65.06", cuda=(13, 0), gpus=(HOPPER, HOPPER))


@pytest.fixture(scope="module")
def bundle(tiny_gpu_bundle):
    return tiny_gpu_bundle


def variant(bundle, name):
    return next(v for v in Bundle.at(bundle).manifest.variants if v.name == name)


# ---- errors


@WITHOUT_GPU
@pytest.mark.parametrize("options", [{}, {"engine": "onnxruntime"}, {"engine": "tensorrt"}])
@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0])
def test_a_gpu_that_is_not_here_is_an_error_that_tells_the_cause(bundle, device, options):
    cause = "no NVIDIA driver" if HAS_PROVIDER else r"has no \w+ExecutionProvider"
    with pytest.raises(ProviderError, match=rf"requested device 'cuda'.*{cause}.*devices='cpu'"):
        FlagModel(str(bundle), devices=device, **options)


def test_it_is_never_taken_unasked(bundle):
    assert FlagModel(str(bundle)).engine.info.device == "cpu"


def test_tensorrt_serves_no_cpu(bundle):
    with pytest.raises(EngineError, match="requested engine 'tensorrt' on cpu"):
        FlagModel(str(bundle), engine="tensorrt")
    on_cpu = replace(variant(bundle, "tensorrt-fp16"), device="cpu")
    with pytest.raises(DeviceError, match="tensorrt engine serves cuda"):
        open_engine(Bundle.open(bundle), on_cpu)


@WITHOUT_GPU
@pytest.mark.parametrize("provider", [CUDA, TENSORRT])
def test_a_session_that_would_run_on_the_cpu_is_an_error(bundle, provider, capsys):
    ort = OrtCpuEngine.load()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # One that the CPU could run, too.
    path = Bundle.at(bundle).path / "onnx" / "model.onnx"
    asked = [(provider, {"device_id": "0"})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ProviderError, match=rf"{provider}.*cannot open shared object"):
            ort_providers.open_session(ort, path, options, asked)
        assert "requested" in ort_providers.load_failure(provider)
    assert capsys.readouterr().out == ""
    assert ort_providers.load_failure(CPU) is None


@pytest.mark.skipif(not HAS_PROVIDER, reason="this onnxruntime is the wheel for CPUs")
def test_the_wheel_for_gpus_knows_our_options(bundle):
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


# ---- packed inputs


@PROPERTY
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_packed_inputs_hold_each_token_once(lengths):
    longest = max(lengths)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    feeds = graph_inputs({"cumulative_sequence_length"}, ids, mask)
    assert feeds["input_ids"].tolist() == ids[mask == 1].tolist()
    ends = feeds["cumulative_sequence_length"]
    assert ends.dtype == np.int32
    assert np.diff(ends).tolist() == lengths
    for row, (start, end) in enumerate(itertools.pairwise(ends)):
        assert feeds["input_ids"][start:end].tolist() == ids[row, : lengths[row]].tolist()
        assert feeds["position_ids"][start:end].tolist() == list(range(lengths[row]))
    offsets = feeds["token_offset"]
    assert (offsets.dtype, offsets.shape) == (np.dtype(np.int32), mask.shape)
    assert offsets.ravel()[: sum(lengths)].tolist() == np.flatnonzero(mask).tolist()
    assert sorted(offsets.ravel().tolist()) == list(range(mask.size))


# ---- calls into CUDA


@pytest.fixture(scope="module")
def cuda_libraries(tmp_path_factory):
    """Libraries that only bear the names of CUDA's."""
    if not HAS_PROVIDER or HAS_DRIVER or shutil.which("cc") is None:
        pytest.skip("needs the wheel for GPUs, no GPU and a C compiler: make gpu-wheel")
    folder = tmp_path_factory.mktemp("cuda")
    provider = Path(OrtCpuEngine.load().__file__).parent / "capi/libonnxruntime_providers_cuda.so"
    building = [sys.executable, IMITATION / "build.py", provider, folder]
    subprocess.run(building, check=True)
    return folder


@pytest.fixture(scope="module", params=["encoder", "m3"])
def calls(request, bundle, tiny_m3_checkpoint, tmp_path_factory, cuda_libraries):
    """What an engine calls of CUDA: without CUDA graphs, and with them."""
    if request.param == "m3":
        output = tmp_path_factory.mktemp("bundles") / "gpu-m3"
        bundle = export(tiny_m3_checkpoint, output, targets=("cuda",), model_class=ENCODER_ONLY_M3)
    counting = [sys.executable, IMITATION / "count_calls.py", cuda_libraries, bundle]
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(cuda_libraries),
        # cuDNN plans its attention for what it finds, and finds nothing here.
        "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0",
    }
    found = subprocess.run(counting, env=environment, check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def test_streams_and_handles_do_not_grow_with_the_threads_that_call(calls):
    # 24 threads; ONNX Runtime makes a stream and a handle for each that comes to it, and a stream
    # for each that comes to a branch. Here two of its own do.
    for kind in ("plain", "graphs"):
        assert calls[kind]["threads"]["kernels"] > 24 * 20
        assert calls[kind]["threads"]["streams"] <= 2 * 2
        assert calls[kind]["threads"]["handles"] <= 2 * 4


def test_a_short_text_is_one_call_with_cuda_graphs(calls):
    assert calls["graphs"]["in all"]["captured"] == 64
    for text in ("query", "longest"):
        found = calls["graphs"][text]
        assert (found["replayed"], found["kernels"], found["allocations"]) == (1, 0, 0)
        # Its tokens there, its vector back.
        assert (found["copies"], found["copies_in_stream"]) == (2, 0)
        assert calls["plain"][text]["kernels"] > 20


def test_a_vector_is_read_when_it_is_there(calls):
    # The graph's stream does not wait for the one that copies, nor the other way round.
    order = [name for name in calls["graphs"]["order"] if not name.startswith("cudaGet")]
    wait = "cudaStreamSynchronize"
    assert order == ["cudaMemcpy", wait, "cudaGraphLaunch", wait, "cudaMemcpy"]


def test_other_batches_run_as_without_cuda_graphs(calls):
    for text in ("longer", "two"):
        assert calls["graphs"][text]["replayed"] == 0
        assert calls["graphs"][text]["kernels"] == calls["plain"][text]["kernels"]
    assert calls["plain"]["in all"]["captured"] == 0


class CpuMemory:
    """ONNX Runtime with a CPU's memory where captured runs ask for a GPU's."""

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
def even_session(bundle):
    """A session of the graph for texts of one length, brought into a form for a CPU."""
    import onnx_ir as ir

    from bge_export.passes import EmulateHalfPrecision

    model = ir.load(bundle / "onnx" / "model_cuda_even_fp16.onnx")
    EmulateHalfPrecision()(model)
    file = bundle / "onnx" / f"spelled_out-{os.getpid()}.onnx"  # the bundle is all workers'
    ir.save(model, file)
    ort = OrtCpuEngine.load()
    session = ort.InferenceSession(str(file), providers=[CPU])
    file.unlink()
    return session


@pytest.fixture(scope="module")
def captured(even_session):
    options = OrtCpuEngine.load().RunOptions
    return CudaGraphs(CpuMemory(), even_session, lambda _: options(), index=3)


@PROPERTY
@given(texts=st.lists(st.lists(st.integers(5, 90), min_size=1, max_size=64), max_size=6))
def test_captured_runs_give_each_text_its_own_vector(captured, even_session, texts):
    names = {value.name for value in even_session.get_inputs()}
    for text in texts:
        ids = np.array([text])
        feeds = graph_inputs(names, ids, np.ones_like(ids))
        given_feeds = {name: feeds[name] for name in names}
        (expected,) = even_session.run(["sentence_embedding"], given_feeds)
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
def test_one_short_text_goes_to_the_companion(captured, lengths, outputs, chosen):
    cuda_graph_engine, engine = object.__new__(CudaGraphEngine), object.__new__(OrtCudaEngine)
    cuda_graph_engine._graphs, engine.cuda_graph_engine = captured, cuda_graph_engine
    cuda_graph_engine._session = SimpleNamespace(run=lambda *_: "captured")
    engine._session = SimpleNamespace(run=lambda *_: "packed")
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    assert engine.run(mask, mask, outputs) == chosen


def test_the_companion_has_to_be_near_pytorch_here(bundle, monkeypatch):
    opened = Bundle.open(bundle)
    packed = variant(bundle, "cuda-fp16")
    near = Parity(texts=3, min_cosine=1.0, mean_cosine=1.0, max_error=0.0, error_share=0.0)
    measured = []

    def measure(of, even):
        measured.append(even.name)
        return near

    monkeypatch.setattr("bge_runtime.variants.selection.unavailable_reason", lambda _: None)
    monkeypatch.setattr("bge_runtime.variants.selection.cached_parity", measure)
    assert select_cuda_graph_variant(opened, packed).name == "cuda-even-fp16"
    near = replace(near, min_cosine=0.99)
    with pytest.raises(EngineError, match=r"cuda-even-fp16.*fails the parity check.*0\.99"):
        select_cuda_graph_variant(opened, packed)
    assert measured == ["cuda-even-fp16"] * 2
    with pytest.raises(EngineError, match="no graph for them to go with variant 'cuda-bf16'"):
        select_cuda_graph_variant(opened, replace(packed, name="cuda-bf16", precision="bf16"))
    with pytest.raises(EngineError, match="'tensorrt-fp16' is tensorrt's on cuda"):
        select_cuda_graph_variant(opened, variant(bundle, "tensorrt-fp16"))


def test_the_companion_is_never_chosen_for_itself(bundle, monkeypatch):
    monkeypatch.setattr("bge_runtime.variants.selection.unavailable_reason", lambda _: None)
    monkeypatch.setattr(
        "bge_runtime.variants.selection._passes_parity", lambda _, v: v.engine == "tensorrt"
    )
    assert select_variant(Bundle.open(bundle), device="cuda").name == "tensorrt-fp16"


def test_a_graph_that_cannot_be_captured_is_an_error(even_session, monkeypatch):
    class Refusing:
        def __getattr__(self, name):
            return getattr(even_session, name)

        def run_with_iobinding(self, binding, options):
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(EngineError, match=r"of 1 tokens as a CUDA graph.*leave cuda_graphs out"):
        CudaGraphs(CpuMemory(), Refusing(), lambda _: None, index=3)


@pytest.mark.parametrize("options", [{}, {"engine": "onnxruntime"}])
def test_cuda_graphs_without_a_gpu_are_an_error(bundle, options):
    with pytest.raises(EngineError, match=r"requested cuda_graphs.*cpu.*devices='cuda'"):
        FlagModel(str(bundle), cuda_graphs=True, **options)


# ---- texts of one length


class Branches:
    """A session of a graph with a branch for texts of one length, which fails with an error."""

    def __init__(self, error: Exception | None = None):
        self.error, self.taken = error, []

    def run(self, _outputs, feeds, _options):
        self.taken.append(bool(feeds["one_length"]))
        if self.error is not None and self.taken[-1]:
            raise self.error
        return [np.ones((len(feeds["token_offset"]), 8), dtype=np.float32)]


def feeds_of(rows: int, columns: int, *, short: int = 0):
    mask = np.ones((rows, columns), dtype=np.int64)
    mask[-1, columns - short :] = 0
    return graph_inputs({"cumulative_sequence_length", "one_length"}, mask, mask)


@pytest.fixture
def branching():
    """An engine for a GPU without its session."""
    engine = object.__new__(OrtCudaEngine)
    engine._run_options = None
    engine._uniform_length = ort_cuda._UniformLengthBranch()
    engine._threads = CudaThreads(2)
    with engine._threads._executor:
        yield engine


@pytest.fixture
def compute(branching):
    """What that engine does with a session and a batch."""
    return lambda session, feeds: branching._compute(session, ["sentence_embedding"], feeds)


def test_a_shape_that_comes_up_often_gets_the_branch_for_it(compute):
    session, runs = Branches(), ort_cuda._UNIFORM_LENGTH_RUNS
    for _ in range(runs + 2):
        compute(session, feeds_of(64, 512))
        compute(session, feeds_of(64, 100))  # too small
        compute(session, feeds_of(64, 512, short=1))
    assert session.taken == [False] * 3 * runs + [True, False, False] * 2
    compute(session, feeds_of(32, 512))
    assert not session.taken[-1]


def test_one_text_takes_it_as_well(compute):
    session = Branches()
    for _ in range(ort_cuda._UNIFORM_LENGTH_RUNS + 1):
        compute(session, feeds_of(1, 8192))
    assert session.taken[-1]


def test_a_branch_that_fails_is_left_out_for_good(compute):
    session = Branches(RuntimeError("cuDNN has no plan"))

    def run_often():
        return [compute(session, feeds_of(64, 512)) for _ in range(40)]

    with pytest.warns(UserWarning, match=r"one length.*fails.*no plan.*left out") as said:
        found = run_often()
    assert (len(found), len(said), session.taken.count(True)) == (40, 1, 1)
    assert all(vectors.shape == (64, 8) for (vectors,) in found)


def test_memory_that_is_too_short_is_not_the_branchs_fault(compute):
    session = Branches(RuntimeError("Failed to allocate memory for requested buffer"))
    for _ in range(ort_cuda._UNIFORM_LENGTH_RUNS):
        compute(session, feeds_of(64, 512))
    # The batch is run in halves, elsewhere.
    with pytest.raises(RuntimeError, match="allocate"):
        compute(session, feeds_of(64, 512))
    session.error = None
    compute(session, feeds_of(64, 512))
    assert session.taken[-1]


def test_it_can_be_asked_to_take_it_always(branching, compute):
    session = Branches()
    branching._uniform_length = ort_cuda._UniformLengthBranch(always=True)
    for feeds in (feeds_of(1, 3), feeds_of(2, 3, short=1)):
        compute(session, feeds)
    assert session.taken == [True, False]


def test_while_python_ends_the_caller_runs_the_session(branching, compute):
    branching._threads._executor.shutdown()
    (vectors,) = compute(Branches(), feeds_of(2, 3))
    assert vectors.shape == (2, 8)


# ---- out of memory


class Small(WrappedEngine):
    """An engine with memory for so many tokens."""

    def __init__(self, inner, tokens):
        super().__init__(inner)
        self.tokens = tokens
        self.batches = replace(inner.batches, tokens=4096, overhead_tokens=4096)
        self.asked = []

    def run(self, input_ids, attention_mask, outputs, **rest):
        self.asked.append(input_ids.shape)
        if input_ids.size > self.tokens:
            error = RuntimeError("BFCArena: Failed to allocate memory for requested buffer")
            raise inference_error("ONNX Runtime", input_ids, error)
        return super().run(input_ids, attention_mask, outputs)


def test_a_batch_too_large_for_the_memory_is_run_in_halves(tiny_bundle):
    expected = FlagModel(str(tiny_bundle), use_fp16=False).encode(TEXTS)
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    small = model._engines.opened["cpu"] = Small(model._engines.opened["cpu"], 600)
    with pytest.warns(UserWarning, match=r"failed on a batch of \d+ texts.*two halves"):
        vectors = model.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert any(rows * columns > 600 for rows, columns in small.asked)
    # Halves of short texts are as short as their longest one.
    assert min(columns for _, columns in small.asked) < 512


def test_one_text_too_large_for_the_memory_is_an_error(tiny_bundle):
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    model._engines.opened["cpu"] = Small(model._engines.opened["cpu"], 100)
    with pytest.warns(UserWarning, match="two halves"), pytest.raises(OutOfMemoryError):
        model.encode(TEXTS)


@pytest.mark.parametrize(
    "message",
    [
        "RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 1024 is smaller than requested bytes of 4096",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_what_engines_say_of_memory_is_understood(message):
    ids = np.zeros((2, 3), dtype=np.int64)
    assert type(inference_error("x", ids, RuntimeError(message))) is OutOfMemoryError
    assert type(inference_error("x", ids, RuntimeError("no kernel"))) is InferenceError


def test_two_batches_are_under_way_on_a_gpu(tiny_bundle):
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(WrappedEngine):
        waiting = True

        def __init__(self, inner):
            super().__init__(inner)
            self.batches = replace(inner.batches, concurrent_runs=2)

        def run(self, input_ids, attention_mask, outputs, *, past=None):
            if self.waiting:
                meeting.wait()  # breaks if the second one never comes
                self.waiting = False
            return super().run(input_ids, attention_mask, outputs)

    expected = model.encode(TEXTS)
    model._engines.opened["cpu"] = Meeting(model._engines.opened["cpu"])
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-5)


# ---- what is handed out


class InFp16(WrappedEngine):
    """An engine that says it is a GPU's."""

    def __init__(self, inner):
        super().__init__(inner)
        self.info = replace(self.info, device="cuda", precision="fp16")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_of_a_gpu_in_fp16_have_flag_embeddings_type(tiny_bundle, tiny_mean_bundle, pooling):
    bundle = str(tiny_bundle if pooling == "cls" else tiny_mean_bundle)
    model = FlagModel(bundle, pooling_method=pooling, use_fp16=False)
    expected = model.encode(TEXTS)
    model._engines.opened["cpu"] = InFp16(model._engines.opened["cpu"])
    vectors = model.encode(TEXTS)
    # FlagEmbedding's mean is of numbers in float32.
    assert vectors.dtype == (np.float16 if pooling == "cls" else np.float32)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("lengths", "texts"),
    [
        ([0] * 5000, 2048),
        ([20] * 5000, 2048),
        ([770] * 500, 64),
        ([10**6] * 5, 1),
        ([10] * 100 + [4000] * 500, 64),  # not judged by the first ones
        ([], 1),
    ],
)
def test_the_first_texts_for_a_gpu_fill_about_one_batch(lengths, texts):
    assert pipeline.first_window_on_gpu(["x" * length for length in lengths]) == texts


def test_a_gpu_does_not_wait_for_the_tokens_of_all_texts(tiny_bundle, monkeypatch):
    monkeypatch.setattr(
        pipeline, "_FIRST_CHARACTERS_ON_GPU", 64 * sum(map(len, TEXTS)) // len(TEXTS)
    )
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    texts = [text for _ in range(40) for text in TEXTS][:400]
    expected = model.encode(texts)
    encode, windows = model.tokenizer.encode, []

    def counted(texts, **options):
        windows.append((options.get("first", 0), len(texts)))
        return encode(texts, **options)

    monkeypatch.setattr(model.tokenizer, "encode", counted)
    model.encode(texts)
    assert windows == [(0, len(texts))]
    windows.clear()
    model._engines.opened["cpu"] = InFp16(model._engines.opened["cpu"])
    np.testing.assert_allclose(model.encode(texts), expected, rtol=0, atol=5e-4)
    assert windows[:2] == [(0, 64), (64, 128)]
    assert sum(size for _, size in windows) == len(texts)


def test_m3s_vectors_and_weights_have_flag_embeddings_types(tiny_m3_bundle):
    model = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    model._engines.opened["cpu"] = InFp16(model._engines.opened["cpu"])
    found = model.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    assert found["dense_vecs"].dtype == np.float16
    weights = [value for row in found["lexical_weights"] for value in row.values()]
    assert {type(value) for value in weights} == {np.float16}
    assert {tokens.dtype for tokens in found["colbert_vecs"]} == {np.dtype(np.float32)}
    # Scores are summed in float32, unlike FlagEmbedding's.
    scores = model.compute_score([("a b", "a c")])
    assert all(np.isfinite(value).all() for value in scores.values())


# ---- TensorRT


@PROPERTY
@given(st.integers(2, 32768))
def test_profiles_hold_every_length_once(max_length):
    found = tensorrt.profiles(max_length)
    assert found[0].shortest == 1
    assert found[-1].longest == max_length
    for one, following in itertools.pairwise(found):
        assert following.shortest == one.longest + 1
    for profile in found:
        assert profile.shortest <= profile.longest
        assert profile.rows >= 1
        assert profile.rows * profile.longest <= 16384 or profile.rows == 1


def test_every_input_has_a_shape_in_every_profile():
    (short, long) = tensorrt.profiles(512)
    assert long.options(("input_ids", "attention_mask")) == {
        "trt_profile_min_shapes": "input_ids:1x65,attention_mask:1x65",
        "trt_profile_opt_shapes": "input_ids:32x512,attention_mask:32x512",
        "trt_profile_max_shapes": "input_ids:32x512,attention_mask:32x512",
    }
    assert short.rows == 256


class FakeTensorRt(tensorrt.TensorRtEngine):
    """The engine without its sessions: what is asked for is written down."""

    opened_with: list = []  # noqa: RUF012

    @staticmethod
    def unavailable_reason(variant):
        """Return that it can run."""

    def _open_session(self, providers):
        type(self).opened_with.append(providers)
        if self.delay:
            time.sleep(self.delay)
        return OrtSession(self.inner)

    delay = 0.0
    inner = None


@pytest.fixture
def fake(bundle, monkeypatch, tmp_path):
    """Open the fake; its sessions are one of the graph for a CPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvidia, "find_driver", lambda: DRIVER)
    monkeypatch.setattr(tensorrt, "version", lambda: "10.14.1")
    ort = OrtCpuEngine.load()
    session = ort.InferenceSession(
        str(bundle / "onnx" / "model_cpu_fp32.onnx"), providers=["CPUExecutionProvider"]
    )
    monkeypatch.setattr(FakeTensorRt, "inner", session)
    monkeypatch.setattr(FakeTensorRt, "opened_with", [])

    def make(**options):
        return FakeTensorRt(
            Bundle.open(bundle), variant(bundle, "tensorrt-fp16"), EngineOptions(**options)
        )

    return make


def test_engines_are_built_for_a_range_when_a_text_of_it_comes(fake, caplog):
    engine = fake()
    assert len(engine.opened_with) == 1
    ids = np.full((300, 7), 5, dtype=np.int64)
    (vectors,) = engine.run(ids, np.ones_like(ids), ["sentence_embedding"])
    assert vectors.shape == (300, 48)  # in pieces of 256
    assert len(engine.opened_with) == 1
    ids = np.full((2, 65), 5, dtype=np.int64)
    engine.run(ids, np.ones_like(ids), ["sentence_embedding"])
    assert len(engine.opened_with) == 2
    (name, options), (helper, _) = engine.opened_with[1]
    assert (name, helper) == (TENSORRT, CUDA)
    assert options["trt_profile_max_shapes"].startswith("input_ids:32x512,")
    assert "building TensorRT's engine for texts of up to 512 tokens" in caplog.text


def test_engines_that_are_there_are_not_built_again(fake, caplog):
    fake().build()
    assert caplog.text.count("building TensorRT's engine") == 2
    caplog.clear()
    fake().build()
    assert "building" not in caplog.text
    folders = sorted(path.parent.name for path in tensorrt.cache.cache_folder().rglob("built.json"))
    assert len(folders) == 2
    options = json.loads(
        (tensorrt.cache.cache_folder() / "tensorrt" / folders[0] / "built.json").read_text()
    )
    assert not [key for key in options if "fp16" in key or "bf16" in key or "int8" in key]


def test_an_engine_is_kept_under_all_that_it_depends_on(fake, monkeypatch):
    engine = fake()
    profile = tensorrt.profiles(512)[0]
    keys = {engine.cache_folder(profile), engine.cache_folder(tensorrt.profiles(512)[1])}
    other = [
        replace(HOPPER, name="NVIDIA H100"),
        replace(HOPPER, compute_capability="10.0"),
        replace(HOPPER, memory_bytes=80 << 30),
    ]
    drivers = [replace(DRIVER, gpus=(gpu,)) for gpu in other]
    drivers += [replace(DRIVER, version="590.1"), replace(DRIVER, cuda=(13, 1))]
    for driver in drivers:
        monkeypatch.setattr(nvidia, "find_driver", lambda driver=driver: driver)
        keys.add(engine.cache_folder(profile))
    monkeypatch.setattr(nvidia, "find_driver", lambda: DRIVER)
    monkeypatch.setattr(tensorrt, "version", lambda: "10.15.0")
    keys.add(engine.cache_folder(profile))
    monkeypatch.setattr(tensorrt, "version", lambda: "10.14.1")
    monkeypatch.setattr(engine, "_ort", SimpleNamespace(__version__="1.30.0"))
    keys.add(engine.cache_folder(profile))
    files = dict(engine._bundle.manifest.files)
    for name in (engine._graph.file, engine._graph.weights):
        changed = {**files, name: replace(files[name], sha256="0" * 64)}
        manifest = replace(engine._bundle.manifest, files=changed)
        monkeypatch.setattr(engine, "_bundle", replace(engine._bundle, manifest=manifest))
        keys.add(engine.cache_folder(profile))
    assert len(keys) == 11


def test_two_that_want_the_same_engine_build_it_once(fake, caplog, monkeypatch):
    monkeypatch.setattr(FakeTensorRt, "delay", 0.3)
    threads = [threading.Thread(target=fake) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert caplog.text.count("building TensorRT's engine") == 1
    assert caplog.text.count("another process is building") == 2


def test_a_lock_whose_holder_failed_is_free(fake, monkeypatch):
    def failing(self, providers):
        raise EngineError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(FakeTensorRt, "_open_session", failing)
        with pytest.raises(EngineError, match="no memory"):
            fake()
    fake()
    (folder,) = (tensorrt.cache.cache_folder() / "tensorrt").iterdir()
    assert (folder / "built.json").is_file()
    FileLock(folder / ".lock").acquire(timeout=0)


def test_a_number_without_a_gpu_is_an_error(fake):
    with pytest.raises(ProviderError, match=r"requested device 'cuda:2', but there are 2 GPUs"):
        fake(device="cuda:2")


def test_a_cache_that_cannot_be_written_is_an_error_that_says_so(fake, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="Set XDG_CACHE_HOME"):
        fake()
