"""TensorRT on a machine without a GPU: profiles, builds and the cache."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.bundle.bundle import Bundle
from bge_runtime.engines import EngineOptions, tensorrt
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_providers import CUDA_PROVIDER, TENSORRT_PROVIDER
from bge_runtime.engines.ort_session import OrtSession
from bge_runtime.errors import EngineError, ProviderError
from bge_runtime.system import nvidia
from tests.helpers.gpu import find_variant
from tests.helpers.runtime import PROPERTY

HOPPER = nvidia.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=141 << 30)
DRIVER = nvidia.Driver(version="580.65.06", cuda=(13, 0), gpus=(HOPPER, HOPPER))


@pytest.fixture(scope="module")
def bundle(tiny_gpu_bundle):
    return tiny_gpu_bundle


@PROPERTY
@given(st.integers(2, 32768))
def test_profiles_cover_every_length_once(max_length):
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
    """The engine with one session for all ranges, which records the options of each."""

    opened_with: list = []  # noqa: RUF012

    @staticmethod
    def unavailable_reason(precision):
        """Return that any precision can run."""

    def _open_session(self, providers):
        type(self).opened_with.append(providers)
        if self.delay:
            time.sleep(self.delay)
        return OrtSession(self.inner)

    delay = 0.0
    inner = None


@pytest.fixture
def fake(bundle, monkeypatch, tmp_path):
    """A function that opens the fake engine with a session of the CPU's graph."""
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
            Bundle.open(bundle), find_variant(bundle, "tensorrt-fp16"), EngineOptions(**options)
        )

    return make


def test_an_engine_is_built_with_the_first_text_of_its_range(fake, caplog):
    engine = fake()
    assert len(engine.opened_with) == 1
    ids = np.full((300, 7), 5, dtype=np.int64)
    (vectors,) = engine.run(ids, np.ones_like(ids), ["sentence_embedding"])
    assert vectors.shape == (300, 48)  # in parts of 256
    assert len(engine.opened_with) == 1
    ids = np.full((2, 65), 5, dtype=np.int64)
    engine.run(ids, np.ones_like(ids), ["sentence_embedding"])
    assert len(engine.opened_with) == 2
    (name, options), (helper, _) = engine.opened_with[1]
    assert (name, helper) == (TENSORRT_PROVIDER, CUDA_PROVIDER)
    assert options["trt_profile_max_shapes"].startswith("input_ids:32x512,")
    assert "building TensorRT's engine for texts of up to 512 tokens" in caplog.text


def test_cached_engines_are_not_built_again(fake, caplog):
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


def test_the_cache_key_covers_all_that_an_engine_depends_on(fake, monkeypatch):
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


def test_concurrent_builds_of_an_engine_build_it_once(fake, caplog, monkeypatch):
    monkeypatch.setattr(FakeTensorRt, "delay", 0.3)
    threads = [threading.Thread(target=fake) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert caplog.text.count("building TensorRT's engine") == 1
    assert caplog.text.count("another process is building") == 2


def test_a_failed_build_releases_its_lock(fake, monkeypatch):
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


def test_the_number_of_a_missing_gpu_is_an_error(fake):
    with pytest.raises(ProviderError, match=r"requested device 'cuda:2', but there are 2 GPUs"):
        fake(device="cuda:2")


def test_an_unwritable_cache_is_an_error(fake, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="Set XDG_CACHE_HOME"):
        fake()
