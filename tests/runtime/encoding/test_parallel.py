"""Batches side by side on a CPU: when, which, and that no vector changes by it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime import BGEM3FlagModel, FlagLLMModel, FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.encoding import parallel
from bge_runtime.encoding.parallel import ParallelBatches
from bge_runtime.engines import BatchLimits, EngineInfo, EngineOptions, open_engine
from bge_runtime.errors import BundleError, EngineError, InferenceError
from tests.helpers.runtime import PROPERTY, SAME_VALUE, TEXTS, assert_same

# A hang fails after minutes instead of holding up the rest.
pytestmark = pytest.mark.timeout(150)

GIGABYTE = 1 << 30
CORPUS = [100] * 164
"""Lengths of just enough texts to open an engine for."""


# -- Which engine ---------------------------------------------------------------------------


class Fake:
    """An engine of four threads that notes what it runs, and how much of it at once."""

    past_names: tuple[str, ...] = ()
    past_token_bytes = 0

    def __init__(self, *, runs=1, threads=4):
        self.info = EngineInfo(
            engine="fake",
            version="1",
            device="cpu",
            precision="fp32",
            provider="fake",
            variant="fake",
            threads=threads,
            streams=runs,
        )
        self.batches = BatchLimits(tokens=1024, parallel_tokens=256, overhead_tokens=16)
        self.sizes, self.running, self.most = [], 0, 0
        self.lock = threading.Lock()

    def run(self, input_ids, attention_mask, outputs, *, past=None):
        with self.lock:
            self.sizes.append(input_ids.size)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.01)
        with self.lock:
            self.running -= 1
        return [np.zeros((len(input_ids), 1), np.float32) for _ in outputs]

    def release_after_fork(self):
        self.sizes = None


@pytest.fixture
def enough_memory(monkeypatch):
    monkeypatch.setattr(parallel, "available_memory", lambda: GIGABYTE)


@pytest.fixture
def opened(enough_memory, monkeypatch):
    """One that is open: it, the engine for all threads, and the one with a thread for each."""
    monkeypatch.setattr(parallel, "_OPEN_AFTER_TOKENS", 0)
    sharing, together, apart = ParallelBatches(weights_bytes=1000), Fake(), Fake(runs=4)
    sharing.engine_for(CORPUS, together, open_throughput=lambda: apart)
    assert sharing.opened is apart
    return sharing, together, apart


def never():
    raise AssertionError("there is one already")


@pytest.mark.parametrize(
    ("lengths", "shared"),
    [
        ([], False),
        ([400], False),
        ([100] * 10, False),  # 1,000 tokens are one batch
        ([100] * 11, True),
        ([64] * 16, False),
        ([512, 512, 512], False),  # a thread would have nothing to do
        ([512] * 4, True),
        ([512, *[10] * 60], False),  # three threads would wait for one
        ([512, *[10] * 130], True),
        ([8192] * 100, False),  # each of them takes all threads
        ([8192, *[100] * 20], True),
    ],
)
def test_texts_are_shared_out_where_they_fill_a_batch_for_each_thread(opened, lengths, shared):
    sharing, together, apart = opened
    engine = sharing.engine_for(lengths, together, open_throughput=never)
    assert (engine is not together) == shared
    if shared:
        assert engine.info is apart.info
        assert (engine.batches.concurrent_runs, engine.batches.tokens) == (4, 256)


def test_it_is_opened_once_it_has_been_missed_for_long_enough(enough_memory):
    sharing, together, apart = ParallelBatches(weights_bytes=1000), Fake(), Fake(runs=4)
    for _ in range(8):
        # What could not have been shared out does not count.
        assert sharing.engine_for([512], together, open_throughput=never) is together
    for _ in range(13):
        mixed = [8192, *[100] * 12]
        assert sharing.engine_for(mixed, together, open_throughput=never) is together
    assert sharing.engine_for([100] * 12, together, open_throughput=lambda: apart) is not together
    assert sharing.engine_for([100] * 12, together, open_throughput=never) is not together


def test_none_is_opened_where_the_one_that_is_there_can_do_it():
    sharing, together = ParallelBatches(weights_bytes=1000), Fake(runs=4)
    assert sharing.engine_for([100] * 5, together, open_throughput=never) is together
    engine = sharing.engine_for([100] * 11, together, open_throughput=never)
    engine.run(np.ones((2, 100), np.int64), np.ones((2, 100), np.int64), ["x"])
    assert (together.sizes, engine.batches.concurrent_runs, sharing.opened) == ([200], 4, None)


def test_a_corpus_opens_it_at_once(enough_memory):
    sharing, together = ParallelBatches(weights_bytes=1000), Fake()
    engine = sharing.engine_for(CORPUS, together, open_throughput=lambda: Fake(runs=4))
    assert engine is not together


@pytest.mark.parametrize(
    ("available", "opens"),
    [(2 * GIGABYTE - 1, False), (2 * GIGABYTE, True), (None, True)],
    ids=str,
)
def test_it_is_opened_where_there_is_memory(monkeypatch, available, opens):
    monkeypatch.setattr(parallel, "available_memory", lambda: available)
    sharing = ParallelBatches(weights_bytes=GIGABYTE)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            sharing.engine_for(CORPUS, Fake(), open_throughput=lambda: Fake(runs=4))
            assert (sharing.opened is not None) == opens
    said = ["needs 2,048 MB, 2,047 MB are free" in str(one.message) for one in told]
    assert said == ([] if opens else [True])
    # Memory may be there later.
    monkeypatch.setattr(parallel, "available_memory", lambda: 2 * GIGABYTE)
    sharing.engine_for(CORPUS, Fake(), open_throughput=lambda: Fake(runs=4))
    assert sharing.opened is not None


def test_one_that_cannot_be_opened_is_said_once_and_not_tried_again(enough_memory):
    sharing, together = ParallelBatches(weights_bytes=1000), Fake()

    def fail():
        raise BundleError("model.onnx is gone")

    with pytest.warns(UserWarning, match=r"one batch at a time.*model\.onnx is gone"):
        engine = sharing.engine_for(CORPUS, together, open_throughput=fail)
    assert engine is together
    assert sharing.engine_for(CORPUS, together, open_throughput=never) is together
    sharing._open(CORPUS, never)  # nor by a thread that had looked before it failed


def test_others_do_not_wait_while_it_is_opened(enough_memory):
    sharing, together, apart = ParallelBatches(weights_bytes=1000), Fake(), Fake(runs=4)
    opening, go_on = threading.Event(), threading.Event()

    def slow():
        opening.set()
        assert go_on.wait(30)
        return apart

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sharing.engine_for, CORPUS, together, open_throughput=slow)
        assert opening.wait(30)
        assert sharing.engine_for(CORPUS, together, open_throughput=never) is together
        go_on.set()
        assert first.result().info is apart.info
    assert sharing.opened is apart


def test_long_batches_take_all_threads_one_after_the_other(opened):
    sharing, together, apart = opened
    engine = sharing.engine_for([8192, *[100] * 20], together, open_throughput=never)
    batches = [np.ones((1, 8192), np.int64)] * 5 + [np.ones((20, 100), np.int64)] * 8
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda ids: engine.run(ids, np.ones_like(ids), ["x"]), batches))
    assert [len(values[0]) for values in done] == [1] * 5 + [20] * 8
    assert together.sizes == [8192] * 5
    assert together.most == 1
    assert apart.sizes == [2000] * 8
    assert apart.most > 1


def test_abandoning_it_leaves_the_other_engine_alone(opened):
    sharing, together, apart = opened
    sharing.engine_for(CORPUS, together, open_throughput=never).release_after_fork()
    assert apart.sizes == together.sizes == []
    sharing.release_after_fork()
    assert (apart.sizes, together.sizes) == (None, [])
    ParallelBatches(weights_bytes=1).release_after_fork()


# -- Real engines ---------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch):
    """No text is too few to be shared out."""
    monkeypatch.setattr(parallel, "_OPEN_AFTER_TOKENS", 0)
    monkeypatch.setattr(parallel, "_fill_streams", lambda lengths, _: len(lengths) > 1)


def opened_by(model):
    return model._engines.parallel["cpu"].opened


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def both(request, full_tiny_bundle):
    """A model that computes batches side by side, and one that does not."""
    return [
        FlagModel(
            str(full_tiny_bundle),
            engine=request.param,
            use_fp16=False,
            threads=3,
            parallel_batches=parallel,
        )
        for parallel in (True, False)
    ]


words = st.text(max_size=30) | st.sampled_from(TEXTS)


@PROPERTY
@given(
    st.lists(
        words | st.builds(lambda word, times: f"{word} " * times, words, st.integers(1, 40)),
        max_size=20,
    ),
    st.integers(1, 12),
    st.sampled_from([1, 5, 2048]),
)
def test_vectors_are_those_of_one_batch_after_the_other(both, texts, batch_size, window):
    shared, plain = both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bge_runtime.encoding.pipeline._WINDOW", window)
        patch.setattr(parallel, "_OPEN_AFTER_TOKENS", 0)
        patch.setattr(parallel, "_fill_streams", lambda lengths, _: len(lengths) > 1)
        found = shared.encode(texts, batch_size=batch_size)
        expected = plain.encode(texts, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)


def test_onnx_runtime_is_not_opened_for_several_at_once(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    variant = next(v for v in bundle.manifest.variants if v.engine == "onnxruntime")
    with pytest.raises(EngineError, match=r"streams=2.*is onnxruntime's.*engine='openvino'"):
        open_engine(bundle, variant, EngineOptions(streams=2))


def test_what_is_in_force_is_what_was_asked_for(both, at_once):
    shared, plain = both
    shared.encode(TEXTS)
    info = shared.engine.info
    # OpenVINO takes no more threads than there are processors.
    threads = info.threads
    if info.engine == "onnxruntime":
        assert (info.streams, shared.engines) == (threads, [shared.engine])
    else:
        apart = opened_by(shared)
        assert shared.engines == [shared.engine, apart]
        assert (info.streams, apart.info) == (1, dataclasses.replace(info, streams=threads))
    in_force = str(shared.engines[-1].info)
    assert in_force.endswith(f"{threads} threads, up to {threads} batches in parallel")
    assert (plain._engines.parallel, [plain.engine]) == ({}, plain.engines)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_any_number_of_callers_get_their_own_vectors(full_tiny_bundle, model, at_once, engine):
    shared = FlagModel(str(full_tiny_bundle), engine=engine, use_fp16=False, threads=2)
    texts = [[f"{text} {caller}" for text in TEXTS] for caller in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:
        found = list(pool.map(lambda mine: shared.encode(mine, batch_size=2), texts))
    for vectors, mine in zip(found, texts, strict=True):
        np.testing.assert_allclose(vectors, model.encode(mine), rtol=0, atol=SAME_VALUE)


def test_onnx_runtime_computes_with_as_many_threads_as_asked_for(tiny_bundle, at_once):
    shared = FlagModel(str(tiny_bundle), use_fp16=False, threads=3)
    expected = shared.encode(TEXTS)
    engine, callers, own = shared.engine, Fake(), Fake()
    session = engine._session.session

    class Counted:
        def run(self, names, feeds, options):
            callers.run(feeds["input_ids"], None, [])
            return session.run(names, feeds, options)

        def run_async(self, names, feeds, take, data, options):
            with own.lock:
                own.running += 1  # holding its turn, and let go of before the next one has it
                own.most = max(own.most, own.running)

            def taken(*answer):
                with own.lock:
                    own.running -= 1
                take(*answer)

            session.run_async(names, feeds, taken, data, options)

    engine._session.session = Counted()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: shared.encode(TEXTS, batch_size=1), range(6)))
    # One thread is the caller's, the others are the session's.
    assert callers.most == 1
    assert 1 <= own.most <= 2
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=SAME_VALUE)


@pytest.fixture
def led(tiny_bundle):
    """An engine of ONNX Runtime in which another batch is under way."""
    engine = FlagModel(str(tiny_bundle), use_fp16=False, threads=2).engine
    with engine._leading:
        yield engine


def test_the_next_batch_is_run_on_a_thread_of_the_session(led):
    ids = np.full((2, 7), 5, np.int64)
    outputs = ["sentence_embedding"]
    caller = threading.current_thread()
    ran_on = []

    class Watched:
        def run_async(self, names, feeds, take, data, options):
            # A thread that runs Python code when the process exits aborts it.
            assert inspect.isbuiltin(take)

            def watched(*answer):
                ran_on.append(threading.current_thread())
                take(*answer)

            session.run_async(names, feeds, watched, data, options)

    session, led._session.session = led._session.session, Watched()
    (found,) = led.run(ids, np.ones_like(ids), outputs)
    led._session.session = session
    assert ran_on
    assert caller not in ran_on
    (expected,) = session.run(
        outputs,
        {name: np.zeros_like(ids) for name in led._session.input_names}
        | {"input_ids": ids, "attention_mask": np.ones_like(ids)},
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)


def test_what_fails_there_is_its_callers_error(led):
    ids = np.full((1, 3), 1 << 40, np.int64)
    with pytest.raises(InferenceError, match=r"1 texts of 3 tokens.*out of data bounds"):
        led.run(ids, np.ones_like(ids), ["sentence_embedding"])
    ids[:] = 5
    assert np.isfinite(led.run(ids, np.ones_like(ids), ["sentence_embedding"])[0]).all()


def test_a_model_with_heads_gives_the_same_of_each(tiny_m3_bundle, at_once):
    asked = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    options = {"use_fp16": False, "threads": 2}
    shared = BGEM3FlagModel(str(tiny_m3_bundle), **options)
    plain = BGEM3FlagModel(str(tiny_m3_bundle), **options, parallel_batches=False)
    texts = [*TEXTS, "words enough for a batch that is run alone " * 300]
    found = shared.encode(texts, max_length=1024, **asked)
    expected = plain.encode(texts, max_length=1024, **asked)
    np.testing.assert_allclose(found["dense_vecs"], expected["dense_vecs"], rtol=0, atol=SAME_VALUE)
    for ours, theirs in zip(found["colbert_vecs"], expected["colbert_vecs"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_VALUE)
    for ours, theirs in zip(found["lexical_weights"], expected["lexical_weights"], strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(
            list(ours.values()), list(theirs.values()), rtol=0, atol=SAME_VALUE
        )


def test_one_thread_has_nothing_to_share(tiny_bundle):
    assert FlagModel(str(tiny_bundle), threads=1)._engines.parallel == {}


def test_decoders_keep_their_weights_once(decoder):
    assert FlagLLMModel(decoder.bundle, use_fp16=False, threads=2)._engines.parallel == {}


@pytest.fixture
def on_openvino(full_tiny_bundle):
    return functools.partial(FlagModel, engine="openvino", use_fp16=False, threads=2)


def test_few_texts_keep_weights_once(on_openvino, full_tiny_bundle):
    opened = on_openvino(str(full_tiny_bundle))
    opened.encode(TEXTS)
    assert opened_by(opened) is None
    opened.encode(TEXTS * 30)
    assert opened_by(opened) is not None


def test_another_export_in_its_place_is_not_mixed_with_it(
    on_openvino, full_tiny_bundle, tiny_mean_bundle, tmp_path, model, at_once
):
    folder = shutil.copytree(full_tiny_bundle, tmp_path / "bundle")
    opened = on_openvino(str(folder))
    shutil.rmtree(folder)
    shutil.copytree(tiny_mean_bundle, folder)
    with pytest.warns(UserWarning, match="one batch at a time"):
        found = opened.encode(TEXTS)
    np.testing.assert_allclose(found, model.encode(TEXTS), rtol=0, atol=SAME_VALUE)


def test_copies_and_children_open_their_own(on_openvino, full_tiny_bundle, at_once):
    shared = on_openvino(str(full_tiny_bundle))
    expected = shared.encode(TEXTS)
    apart = opened_by(shared)
    copy = pickle.loads(pickle.dumps(shared))
    assert_same(copy.encode(TEXTS), expected)
    assert opened_by(copy) is not None
    assert opened_by(copy) is not apart
    shared._engines.reset_after_fork()  # as in the child of a fork
    assert_same(shared.encode(TEXTS), expected)
    assert opened_by(shared) is not apart
