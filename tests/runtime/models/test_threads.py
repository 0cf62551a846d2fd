"""One model may be used by any number of threads, on one device or on several."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bge_runtime import FlagModel
from bge_runtime.encoding import engine_set, pipeline
from bge_runtime.engines import openvino
from bge_runtime.errors import InferenceError
from bge_runtime.m3 import lexical
from bge_runtime.sources import ExportRequest, export_subprocess, find_bundle
from bge_runtime.system import file_hash
from bge_runtime.system.locks import once
from bge_runtime.variants import parity_check
from tests.helpers.runtime import SAME_VALUE, TEXTS, WrappedEngine, assert_same

# A hang fails after a minute instead of holding up the rest.
pytestmark = pytest.mark.timeout(60)

THREADS = 8

SAME_BATCHES = 1e-6
"""The same batches run by the same code: rounding may differ only by how ONNX Runtime
splits the work among its threads."""


def at_once(work):
    """Run ``work(0)`` to ``work(7)`` in threads that start together."""
    barrier = threading.Barrier(THREADS)

    def start(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


def texts_of(number):
    return [f"thread {number} says {text} {number * repeat}" for repeat, text in enumerate(TEXTS)]


@pytest.mark.parametrize("window", [3, 2048], ids=["many-windows", "one-window"])
def test_threads_get_what_one_thread_gets(model, monkeypatch, window):
    monkeypatch.setattr(pipeline, "_WINDOW", window)
    # Lengths differ by thread: tokenizers keeps truncation as state, we must not.
    lengths = [2, 3, 5, 8, 16, 64, 300, 512]

    def work(number):
        return [model.encode(texts_of(number), max_length=lengths[number]) for _ in range(3)]

    alone = [work(number)[0] for number in range(THREADS)]
    for expected, found in zip(alone, at_once(work), strict=True):
        for vectors in found:
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=SAME_BATCHES)
    # Were the lengths mixed up, it would show.
    assert np.abs(model.encode(texts_of(0), max_length=8) - alone[0]).max() > 0.01


def test_threads_that_come_first_at_once_open_one_engine(model, monkeypatch):
    opened = []
    real = engine_set.open_engine

    def slow(*arguments, **options):
        opened.append(arguments)
        time.sleep(0.2)  # long enough for every thread to arrive
        return real(*arguments, **options)

    monkeypatch.setattr(engine_set, "open_engine", slow)
    copy = pickle.loads(pickle.dumps(model))
    found = at_once(lambda _: copy.encode(TEXTS))
    assert len(opened) == 1
    for vectors in found:
        np.testing.assert_allclose(vectors, model.encode(TEXTS), rtol=0, atol=SAME_BATCHES)


@pytest.mark.parametrize("what", ["hash", "parity", "export"])
def test_what_is_kept_in_the_cache_is_made_once(model, tiny_bundle, tmp_path, monkeypatch, what):
    (tmp_path / "weights").write_bytes(bytes(100))
    (tmp_path / "config.json").write_text("{}")
    new = dataclasses.replace(model._engines._variants["cpu"], name="new")

    def export(command, environment):
        shutil.copytree(tiny_bundle, command[command.index("--output") + 1])
        return 0, []

    module, name, real, ask = {
        "hash": (
            file_hash,
            "file_sha256",
            file_hash.file_sha256,
            lambda: file_hash.remembered_sha256(tmp_path / "weights"),
        ),
        "parity": (
            parity_check,
            "measure_parity",
            parity_check.measure_parity,
            lambda: parity_check.cached_parity(model.bundle, new),
        ),
        "export": (
            export_subprocess,
            "run_export",
            export,
            lambda: find_bundle(tmp_path, request=ExportRequest(pooling="cls")),
        ),
    }[what]
    made = []

    def slow(*arguments):
        made.append(arguments)
        time.sleep(0.2)  # long enough for every thread to arrive
        return real(*arguments)

    monkeypatch.setattr(module, name, slow)
    monkeypatch.setattr(export_subprocess, "_REQUIRED_PACKAGES", ())
    found = at_once(lambda _: ask())
    assert found == [found[0]] * THREADS
    assert len(made) == 1


def test_what_is_kept_in_the_process_is_made_once():
    openvino.cpu_capabilities.__wrapped__.cache_clear()
    for make in (openvino.cpu_capabilities, lambda: lexical._decimals(1 << 19)):
        found = at_once(lambda _, make=make: make())
        assert all(each is found[0] for each in found)


def test_calls_with_other_arguments_do_not_wait_and_errors_are_not_kept():
    made, meeting = [], threading.Barrier(2)

    @once(maxsize=2)
    def make(key):
        made.append(key)
        if key == "fails":
            raise ValueError(key)
        meeting.wait(timeout=30)
        return object()

    found = at_once(lambda number: make(number % 2))
    assert sorted(made) == [0, 1]
    assert len(set(map(id, found))) == 2
    for _ in range(2):
        with pytest.raises(ValueError, match="fails"):
            make("fails")
    assert made[2:] == ["fails"] * 2


def test_an_error_in_one_thread_does_not_reach_another(model):
    def work(number):
        if number % 2:
            with pytest.raises(ValueError, match="not valid Unicode"):
                model.encode([*TEXTS, "\ud800"])
            return None
        return model.encode(TEXTS)

    for vectors in at_once(work)[::2]:
        np.testing.assert_allclose(vectors, model.encode(TEXTS), rtol=0, atol=SAME_BATCHES)


# -- Several devices ----------------------------------------------------------------------


class Recorded(WrappedEngine):
    """An engine that counts its batches, and fails if it is told to."""

    def __init__(self, inner, fault=None):
        super().__init__(inner)
        self.batches_run = 0
        self.fault = fault

    def run(self, input_ids, attention_mask, outputs, *, past=None):
        self.batches_run += 1
        if self.fault is not None:
            raise self.fault
        time.sleep(0.002)  # so that the other one gets its turn
        return super().run(input_ids, attention_mask, outputs)


@pytest.fixture
def two_devices(tiny_bundle, model, monkeypatch):
    """A model on two devices that are not there; both compute on the CPU."""
    engines = {}

    def select(bundle, *, device, **_):
        return dataclasses.replace(bundle.manifest.variants[0], device=device)

    def open_recorded(_bundle, variant, _options):
        engines[variant.device] = Recorded(model.engine)
        return engines[variant.device]

    monkeypatch.setattr(engine_set, "select_variant", select)
    monkeypatch.setattr(engine_set, "open_engine", open_recorded)
    devices = ["cuda:0", "cuda:1"]
    made = FlagModel(str(tiny_bundle), devices=devices)
    assert list(engines) == made.target_devices == devices
    return made, *engines.values()


def test_two_devices_share_a_list_and_keep_its_order(two_devices, model):
    shared, first, second = two_devices
    vectors = shared.encode(TEXTS * 20, batch_size=3)
    expected = model.encode(TEXTS * 20, batch_size=3)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=SAME_VALUE)
    assert first.batches_run > 5
    assert second.batches_run > 5


def test_a_single_text_is_not_shared_out(two_devices, model):
    shared, first, second = two_devices
    np.testing.assert_allclose(shared.encode("one"), model.encode("one"), rtol=0, atol=SAME_VALUE)
    assert (first.batches_run, second.batches_run) == (1, 0)


def test_encode_single_device_uses_the_device_it_is_given(two_devices):
    shared, first, second = two_devices
    shared.encode_single_device(TEXTS, device="cuda:1")
    assert first.batches_run == 0
    assert second.batches_run > 0


@pytest.mark.parametrize("window", [4, 2048], ids=["many-windows", "one-window"])
@pytest.mark.parametrize("broken", [1, 2], ids=["first-device", "second-device"])
def test_a_device_that_fails_ends_the_call_and_the_model_works_on(
    two_devices, model, monkeypatch, broken, window
):
    monkeypatch.setattr(pipeline, "_WINDOW", window)
    shared = two_devices[0]
    two_devices[broken].fault = InferenceError("out of memory")
    with pytest.raises(InferenceError, match="out of memory"):
        shared.encode(TEXTS * 20, batch_size=1)
    # The other one stopped early instead of computing what nobody will get.
    assert two_devices[3 - broken].batches_run < len(TEXTS) * 20 - 1
    two_devices[broken].fault = None
    expected = model.encode(TEXTS)
    np.testing.assert_allclose(shared.encode(TEXTS), expected, rtol=0, atol=SAME_VALUE)


def test_two_devices_that_fail_end_the_call(two_devices):
    shared, first, second = two_devices
    first.fault = second.fault = InferenceError("out of memory")
    with pytest.raises(InferenceError, match="out of memory"):
        shared.encode(TEXTS, batch_size=1)


@pytest.mark.parametrize("window", [4, 2048], ids=["many-windows", "one-window"])
def test_a_text_that_cannot_be_tokenised_ends_a_call_on_two_devices(
    two_devices, monkeypatch, window
):
    monkeypatch.setattr(pipeline, "_WINDOW", window)
    shared = two_devices[0]
    with pytest.raises(ValueError, match="text 24 is not valid Unicode"):
        shared.encode([*TEXTS * 2, "\ud800", *TEXTS])
    assert shared.encode(TEXTS).shape == (len(TEXTS), 48)


def test_no_texts_on_two_devices_give_an_empty_array(two_devices):
    assert two_devices[0].encode([]).shape == (0, 48)


def test_no_thread_outlives_its_call(two_devices, model, monkeypatch):
    # A server calls this for years: what each call leaves behind adds up.
    two_devices[0].encode(TEXTS * 5, batch_size=2)
    before = set(threading.enumerate())
    two_devices[0].encode(TEXTS * 5, batch_size=2)
    monkeypatch.setattr(pipeline, "_WINDOW", 5)
    model.encode(TEXTS)
    assert set(threading.enumerate()) <= before
    assert not [thread for thread in before if thread.name.startswith("bge-")]


def test_a_progress_bar_is_shown_when_asked_for_and_never_off_a_terminal(model, capsys):
    model.encode(TEXTS, batch_size=1)
    model.encode(TEXTS, batch_size=1, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    model.encode(TEXTS, show_progress_bar=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


def test_a_long_call_on_a_terminal_shows_its_progress(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model.encode(TEXTS, batch_size=len(TEXTS) + 1)
    assert capsys.readouterr().err == ""
    model.encode(TEXTS, batch_size=len(TEXTS))
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2])
def test_a_failed_call_leaves_no_thread_to_the_garbage_collector(
    two_devices, model, monkeypatch, devices
):
    # Seen once in a while as a deadlock: the collector closed an abandoned generator inside
    # a thread that was starting, and the generator waited for its tokenising thread there.
    monkeypatch.setattr(pipeline, "_WINDOW", 4)
    failing, texts = model, [*TEXTS * 2, "\ud800", *TEXTS]
    if devices == 2:
        failing, first, second = two_devices
        texts = TEXTS * 20
        first.fault = second.fault = InferenceError("out of memory")
    gc.disable()
    try:
        with pytest.raises((InferenceError, ValueError)) as caught:
            failing.encode(texts, batch_size=1)
        assert caught.tb is not None  # which keeps the frames alive
        assert not [t for t in threading.enumerate() if t.name.startswith("bge-")]
    finally:
        gc.enable()


def test_where_no_thread_can_be_started_the_caller_computes(model, monkeypatch):
    # Python 3.12 starts none in atexit, and a container may be at its limit of them.
    def refuse(self):
        raise RuntimeError("can't start new thread")

    texts = TEXTS * 300
    expected = model.encode(texts)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert_same(model.encode(texts), expected)
