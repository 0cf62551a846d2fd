"""What texts begin with is computed once, and no vector shows it."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime import FlagLLMModel, FlagModel
from bge_runtime.encoding import pipeline, prefill
from bge_runtime.encoding.prefix_cache import MAX_ENTRIES, MIN_TOKENS, PrefixCache
from bge_runtime.errors import InferenceError
from tests.helpers.runtime import PROPERTY, SAME_VALUE, TEXTS, edit_manifest

pytestmark = pytest.mark.timeout(120)

TASK = "Given a web search query, retrieve relevant passages that answer the query. "
OPTIONS = {"use_fp16": False, "engine": "onnxruntime", "threads": 1}


class Recorder:
    """An engine whose keys are the tokens themselves and whose values are their positions."""

    past_names = ("past_key_values.0.key", "past_key_values.0.value")
    past_token_bytes = 8

    def __init__(self, variant="cpu-fp32"):
        self.info = SimpleNamespace(variant=variant)
        self.runs = []
        self.fault = None

    def run(self, input_ids, attention_mask, outputs, *, past=None):
        if self.fault is not None:
            raise self.fault
        assert list(outputs) == ["present.0.key", "present.0.value"]
        start = 0 if past is None else past[0].shape[2]
        self.runs.append(input_ids.shape[1])
        shape = (1, 1, -1, 1)
        positions = np.arange(start, start + input_ids.shape[1])
        return [values.reshape(shape).astype(np.float32) for values in (input_ids, positions)]


def tokens(*parts):
    """Rows of tokens: ``tokens(40, 3)`` counts to 40 and ends with three others."""
    count, *rest = parts
    return np.array([*range(1, count + 1), *(900 + number for number in rest)], dtype=np.int64)


def check(shared, texts, variant="cpu-fp32"):
    """Check that what is shared belongs to these very texts."""
    key, value = shared.pasts[variant]
    assert 0 < shared.length < min(map(len, texts))
    for row in texts:
        assert key.ravel().tolist() == row[: shared.length].tolist()
    assert value.ravel().tolist() == list(range(shared.length))
    assert key.flags.c_contiguous
    assert value.flags.c_contiguous


@pytest.fixture(scope="module")
def reusing(decoder):
    """The tiny decoder, which computes what texts begin with once."""
    return FlagLLMModel(decoder.bundle, query_instruction_for_retrieval=TASK, **OPTIONS)


@pytest.fixture(scope="module")
def plain(decoder):
    """The same one without reuse."""
    return FlagLLMModel(
        decoder.bundle, query_instruction_for_retrieval=TASK, prefix_cache_mb=0, **OPTIONS
    )


# -- The vectors --------------------------------------------------------------------------


@PROPERTY
@given(
    st.lists(st.one_of(st.text(max_size=30), st.sampled_from(TEXTS)), min_size=1, max_size=6),
    st.one_of(st.none(), st.text(max_size=8), st.sampled_from([TASK, TASK * 3, "a b " * 20])),
    st.sampled_from(["{}{}", "Instruct: {}\nQuery: {}", "{1} and {0}"]),
    st.sampled_from([120, 512]),
)
def test_no_vector_shows_whether_prefixes_are_reused(
    reusing, plain, texts, instruction, template, length
):
    options = {"instruction": instruction, "instruction_format": template, "max_length": length}
    np.testing.assert_allclose(
        reusing.encode(texts, **options), plain.encode(texts, **options), rtol=0, atol=SAME_VALUE
    )


@PROPERTY
@given(st.lists(st.text(max_size=20), min_size=2, max_size=6), st.text(max_size=60))
def test_texts_that_begin_alike_keep_their_order(reusing, plain, ends, start):
    texts = [start * 3 + end for end in ends]
    np.testing.assert_allclose(reusing.encode(texts), plain.encode(texts), rtol=0, atol=SAME_VALUE)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_each_engine_gives_the_same_behind_a_prefix(decoder, plain, engine, tmp_path):
    def add_variant(data):
        # Decoders are not exported for OpenVINO in fp32, where rounding hides nothing.
        fp32 = next(one for one in data["variants"] if one["name"] == "cpu-fp32")
        data["variants"].append({**fp32, "name": "openvino-fp32", "engine": "openvino"})

    bundle = shutil.copytree(decoder.bundle, tmp_path / "bundle")
    edit_manifest(bundle, add_variant)
    model = FlagLLMModel(str(bundle), **{**OPTIONS, "engine": engine})
    model.query_instruction_for_retrieval = TASK
    for texts in (TEXTS, TEXTS[3], TEXTS[::-1]):
        found = model.encode_queries(texts)
        np.testing.assert_allclose(found, plain.encode_queries(texts), rtol=0, atol=SAME_VALUE)
    stats = model.prefix_cache.stats
    assert (stats.hits, stats.misses, stats.entries) == (2, 1, 1)


def test_windows_of_a_long_call_share_a_prefix(reusing, plain, monkeypatch):
    expected = plain.encode_queries(TEXTS)
    monkeypatch.setattr(pipeline, "_WINDOW", 3)
    reusing.prefix_cache.clear()
    found = reusing.encode_queries(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)
    assert reusing.prefix_cache.stats.misses == 1
    assert reusing.prefix_cache.stats.hits == len(TEXTS) // 3 - 1


@pytest.mark.parametrize("cached", [True, False], ids=["behind-a-prefix", "alone"])
def test_a_long_text_in_pieces_gives_the_same(reusing, plain, monkeypatch, cached):
    texts = ["a text of many tokens " * repeat for repeat in (30, 60, 3, 90)]
    expected = plain.encode_queries(texts)
    model = reusing if cached else plain
    monkeypatch.setattr(prefill, "LONG_TOKENS", 40)
    monkeypatch.setattr(prefill, "CHUNK_TOKENS", 16)
    model.prefix_cache.clear()
    found = model.encode_queries(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)
    widest = []
    run = model.engine.run
    monkeypatch.setattr(
        model.engine,
        "run",
        lambda ids, *rest, **past: (widest.append(ids.shape[1]), run(ids, *rest, **past))[1],
        raising=False,
    )
    model.encode_queries(texts)
    assert max(widest) <= 40


def test_a_single_query_finds_what_the_one_before_has_left(reusing):
    reusing.prefix_cache.clear()
    reusing.encode_queries("one query")
    before = reusing.prefix_cache.stats
    assert (before.hits, before.misses, before.tokens_saved) == (0, 1, 0)
    reusing.encode_queries("quite another one")
    after = reusing.prefix_cache.stats
    assert (after.hits, after.misses) == (1, 1)
    assert after.tokens_saved >= MIN_TOKENS
    assert "1 hits" in str(after)
    assert "1 hits" in repr(reusing.prefix_cache)


def test_single_texts_without_an_instruction_leave_nothing(reusing):
    reusing.prefix_cache.clear()
    reusing.encode(TEXTS[-2])
    assert reusing.prefix_cache.stats.entries == 0


def test_tokens_that_see_those_behind_them_are_never_reused(two_way_decoder):
    model = FlagLLMModel(two_way_decoder, query_instruction_for_retrieval=TASK, **OPTIONS)
    assert model.encode_queries(["one", "two"]).shape == (2, 64)
    stats = model.prefix_cache.stats
    assert (stats.hits, stats.misses, stats.capacity_bytes) == (0, 0, 0)
    assert str(stats) == "prefixes are not reused"


def test_encoders_have_no_prefix_cache(model):
    assert not hasattr(FlagModel, "prefix_cache")
    model.encode(["the very same text " * 20] * 3)
    assert model._engines.prefix_cache.stats.misses == 0


@pytest.mark.parametrize("size", [-1, 1.5, "64"])
def test_a_size_that_is_none_is_an_error(decoder, size):
    with pytest.raises(ValueError, match="prefix_cache_mb must be a whole number"):
        FlagLLMModel(decoder.bundle, prefix_cache_mb=size)


# -- The cache ----------------------------------------------------------------------------


def test_texts_of_a_call_share_all_that_they_begin_with():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    texts = [tokens(40, 1, 2), tokens(40, 3), tokens(40, 4, 5, 6)]
    shared = cache.share([engine], texts)
    assert shared.length == 40
    check(shared, texts)
    assert engine.runs == [40]
    assert cache.stats.tokens_saved == 80


def test_one_token_of_each_text_is_left():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    texts = [tokens(40), tokens(40, 1)]
    shared = cache.share([engine], texts)
    assert shared.length == 39
    check(shared, texts)


def test_of_what_is_expected_only_the_tokens_that_are_there_count():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    texts = [tokens(38, 1, 2, 3)]  # the tokens at the seam have merged with the query's
    shared = cache.share([engine], texts, tokens(40))
    assert shared.length == 38
    check(shared, texts)


def test_an_accidental_longer_match_is_not_computed():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    expected = tokens(40)
    cache.share([engine], [tokens(40, 1)], expected)
    texts = [tokens(40, 1, 2, 3), tokens(40, 1, 2, 4)]
    shared = cache.share([engine], texts, expected)
    assert shared.length == 40
    assert engine.runs == [40]


def test_a_much_longer_match_is_computed_from_where_the_known_one_ends():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    cache.share([engine], [tokens(40, 1)], tokens(40))
    texts = [tokens(100, 1), tokens(100, 2)]
    shared = cache.share([engine], texts, tokens(40))
    assert shared.length == 100
    check(shared, texts)
    assert engine.runs == [40, 60]


def test_a_known_prefix_serves_a_shorter_match():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    cache.share([engine], [tokens(100, 1)], tokens(100))
    texts = [tokens(60, 1)]
    shared = cache.share([engine], texts)
    assert shared.length == 60
    check(shared, texts)
    assert engine.runs == [100]


def test_a_prefix_too_short_to_pay_is_left_alone():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    assert cache.share([engine], [tokens(MIN_TOKENS - 1, 1), tokens(MIN_TOKENS - 1, 2)]) is None
    assert cache.share([engine], [tokens(MIN_TOKENS, 1), tokens(MIN_TOKENS, 2)]) is not None


def test_each_variant_has_values_of_its_own():
    exact, rough = Recorder("cpu-fp32"), Recorder("openvino-bf16")
    cache = PrefixCache(1 << 20)
    texts = [tokens(40, 1), tokens(40, 2)]
    shared = cache.share([exact, rough], texts)
    for variant in ("cpu-fp32", "openvino-bf16"):
        check(shared, texts, variant)
    assert (exact.runs, rough.runs) == ([40], [40])
    assert cache.stats.entries == 2


@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_shared_where_an_engine_takes_no_past(first):
    without = Recorder("tensorrt-bf16")
    without.past_names, without.past_token_bytes = (), 0
    engines = [Recorder(), without] if first else [without, Recorder()]
    cache = PrefixCache(1 << 20)
    assert cache.share(engines, [tokens(40, 1), tokens(40, 2)]) is None
    assert [engine.runs for engine in engines] == [[], []]


@PROPERTY
@given(
    st.lists(
        st.tuples(
            st.lists(st.lists(st.integers(1, 2), max_size=12), min_size=1, max_size=3),
            st.integers(0, 60),
            st.one_of(st.none(), st.integers(1, 60)),
        ),
        max_size=8,
    ),
    st.sampled_from([0, 100, 400, 1 << 20]),
)
def test_whatever_is_asked_the_past_is_the_texts_and_the_memory_is_kept(calls, capacity):
    engine, cache = Recorder(), PrefixCache(capacity)
    for ends, count, expected in calls:
        texts = [tokens(count, *end, 99) for end in ends]
        shared = cache.share([engine], texts, None if expected is None else tokens(expected))
        if shared is not None:
            check(shared, texts)
        stats = cache.stats
        assert stats.size_bytes <= capacity
        assert stats.tokens_saved >= 0


def test_the_prefix_that_was_not_used_for_longest_goes_first():
    engine = Recorder()
    cache = PrefixCache(3 * 20 * engine.past_token_bytes)
    rows = [np.arange(start, start + 21) for start in (100, 200, 300, 400)]
    for row in (*rows[:3], rows[0], rows[3], rows[0]):
        cache.share([engine], [row], row)
    assert len(engine.runs) == 4
    assert cache.stats.entries == 3
    cache.share([engine], [rows[1]], rows[1])
    assert len(engine.runs) == 5


def test_the_number_of_prefixes_is_bounded():
    engine, cache = Recorder(), PrefixCache(1 << 30)
    for start in range(0, 100 * (MAX_ENTRIES + 5), 100):
        row = np.arange(start, start + MIN_TOKENS + 1)
        cache.share([engine], [row], row)
    assert cache.stats.entries == MAX_ENTRIES


def test_clearing_frees_the_memory_and_counts_anew():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    cache.share([engine], [tokens(40, 1), tokens(40, 2)])
    cache.clear()
    stats = cache.stats
    assert (stats.entries, stats.size_bytes, stats.misses, stats.tokens_saved) == (0, 0, 0, 0)


def test_a_failure_is_reported_and_the_prefix_computed_next_time():
    engine, cache = Recorder(), PrefixCache(1 << 20)
    engine.fault = InferenceError("no memory")
    texts = [tokens(40, 1), tokens(40, 2)]
    with pytest.raises(InferenceError, match="no memory"):
        cache.share([engine], texts)
    engine.fault = None
    check(cache.share([engine], texts), texts)


# -- Threads and processes ----------------------------------------------------------------


def test_threads_that_need_the_same_prefix_compute_it_once():
    class Slow(Recorder):
        def run(self, *arguments, **options):
            time.sleep(0.1)
            return super().run(*arguments, **options)

    engine, cache = Slow(), PrefixCache(1 << 20)
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        # The seam differs from thread to thread, as after a tokenizer's merge.
        texts = [tokens(40 - number % 3, number)]
        check(cache.share([engine], texts, tokens(40)), texts)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(engine.runs) == 1
    assert (cache.stats.hits, cache.stats.misses) == (7, 1)


def test_threads_get_what_one_thread_gets(reusing, plain):
    reusing.prefix_cache.clear()
    instructions = [TASK, TASK + "again ", "b " * 30, None]

    def texts(number):
        return [f"{text} {number}" for text in TEXTS[:6]]

    def work(number, model=reusing):
        instruction = instructions[number % 4]
        return model.encode(
            texts(number), instruction=instruction, instruction_format="{}{}", max_length=300
        )

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(24)))
    for number, vectors in enumerate(found):
        np.testing.assert_allclose(vectors, work(number, plain), rtol=0, atol=SAME_VALUE)


def test_a_pickled_model_begins_with_an_empty_cache(reusing):
    expected = reusing.encode_queries(TEXTS)
    copy = pickle.loads(pickle.dumps(reusing))
    before = copy.prefix_cache.stats
    assert (before.entries, before.capacity_bytes) == (0, reusing.prefix_cache.stats.capacity_bytes)
    np.testing.assert_allclose(copy.encode_queries(TEXTS), expected, rtol=0, atol=SAME_VALUE)
    assert copy.prefix_cache.stats.misses == 1


def test_a_forked_child_uses_its_parents_prefixes(decoder, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, sys
            import numpy as np
            from bge_runtime import FlagLLMModel

            model = FlagLLMModel(sys.argv[1], query_instruction_for_retrieval={TASK!r})
            expected = model.encode_queries(["one", "two three"])
            model.prefix_cache._lock.acquire()  # as another thread may have it just now
            model.prefix_cache._computing.acquire()
            child = os.fork()
            if not child:
                found = model.encode_queries(["one", "two three"])
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
                stats = model.prefix_cache.stats
                assert (stats.misses, stats.hits) == (1, 1), stats
                sys.exit(0)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program), decoder.bundle],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
