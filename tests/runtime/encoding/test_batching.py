"""Which texts go into a batch together, and that it does not matter to them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.encoding import pipeline
from bge_runtime.encoding.batching import (
    MAX_PADDED_TOKENS,
    balanced_batch_tokens,
    plan_batches,
)
from bge_runtime.encoding.prefix_cache import PrefixCache
from bge_runtime.engines import BatchLimits, pad_batch
from tests.helpers.runtime import PROPERTY, SAME_VALUE, TEXTS, assert_fp32_on_cpu

lengths_of_texts = st.lists(
    # Short ones, and long ones that may be of equal length.
    st.one_of(st.integers(1, 600), st.sampled_from([1020, 1024, 1025, 1026, 1030])),
    max_size=200,
)
limits = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 5000),
        "max_rows": st.integers(1, 64),
        "max_padding": st.integers(0, 300),
    }
)


def padding_allowed(longest, limits):
    return limits["max_padding"] if longest <= MAX_PADDED_TOKENS else 0


@PROPERTY
@given(lengths_of_texts, limits)
def test_each_text_is_in_exactly_one_batch(lengths, limits):
    batches = plan_batches(lengths, **limits)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


@PROPERTY
@given(lengths_of_texts, limits)
def test_no_batch_breaks_a_limit(lengths, limits):
    for batch in plan_batches(lengths, **limits):
        sizes = [lengths[row] for row in batch]
        padded = len(sizes) * max(sizes)
        assert 1 <= len(sizes) <= limits["max_rows"]
        assert padded - sum(sizes) <= padding_allowed(max(sizes), limits)
        # A text that alone is over the limit still has to go somewhere: alone.
        assert padded <= limits["max_tokens"] or len(sizes) == 1


@PROPERTY
@given(lengths_of_texts, limits)
def test_longest_texts_come_first_and_equal_ones_in_input_order(lengths, limits):
    order = [int(row) for batch in plan_batches(lengths, **limits) for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])


@PROPERTY
@given(lengths_of_texts, limits)
def test_a_batch_is_closed_only_when_the_next_text_would_break_a_limit(lengths, limits):
    # Without this, one text a batch would satisfy every other property.
    batches = plan_batches(lengths, **limits)
    for batch, following in itertools.pairwise(batches):
        sizes = [lengths[row] for row in [*batch, following[0]]]
        padded = len(sizes) * sizes[0]
        assert (
            len(sizes) > limits["max_rows"]
            or padded > limits["max_tokens"]
            or padded - sum(sizes) > padding_allowed(sizes[0], limits)
        )


@pytest.mark.parametrize(
    "wrong",
    [{"max_tokens": 0}, {"max_rows": 0}, {"max_padding": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_limit_that_fits_nothing_is_an_error(wrong):
    limits = {"max_tokens": 10, "max_rows": 10, "max_padding": 0, **wrong}
    with pytest.raises(ValueError, match="max_tokens >= 1, max_rows >= 1 and max_padding >= 0"):
        plan_batches([1, 2], **limits)


@PROPERTY
@given(st.lists(st.integers(1, 600), min_size=1, max_size=200), st.integers(1, 5000))
def test_a_single_run_and_texts_of_one_batch_keep_their_limit(lengths, max_tokens):
    assert balanced_batch_tokens(lengths, max_tokens, streams=1) == max_tokens
    assert balanced_batch_tokens(lengths, sum(lengths), streams=4) == sum(lengths)


@PROPERTY
@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=200),
    st.integers(600, 5000),
    st.integers(2, 8),
)
def test_runs_at_once_get_smaller_batches_never_larger_ones(lengths, max_tokens, runs):
    limit = balanced_batch_tokens(lengths, max_tokens, streams=runs)
    assert 1 <= limit <= max_tokens
    # No more than as many batches for each run as there have to be, one left over aside.
    rounds = -(-sum(lengths) // (runs * max_tokens))
    assert limit * rounds * runs >= min(sum(lengths), max_tokens)


@pytest.mark.parametrize(
    ("texts", "batches"),
    [(7, [400, 300]), (11, [600, 500]), (20, [500] * 4), (25, [700, 700, 700, 400])],
)
def test_two_runs_share_texts_evenly(texts, batches):
    lengths = [100] * texts
    limit = balanced_batch_tokens(lengths, 700 if texts == 25 else 600, streams=2)
    plan = plan_batches(lengths, max_tokens=limit, max_rows=64, max_padding=0)
    assert [100 * len(batch) for batch in plan] == batches


class FakeEngine:
    """An engine with its limits only."""

    past_token_bytes = 0

    def __init__(self, *, tokens, overhead):
        self.batches = BatchLimits(tokens=tokens, parallel_tokens=tokens, overhead_tokens=overhead)


@pytest.mark.parametrize("gpu_first", [True, False])
def test_batches_suit_all_engines_that_share_a_call(gpu_first):
    # As devices=["cuda:0", "cpu"]: either may take any batch.
    gpu, cpu = FakeEngine(tokens=32768, overhead=32768), FakeEngine(tokens=512, overhead=16)
    engines = SimpleNamespace(
        bundle=SimpleNamespace(manifest=SimpleNamespace(model=SimpleNamespace(pad_token_id=0))),
        prefix_cache=PrefixCache(0),
    )
    plan = pipeline.EncodingPlan(
        tokenization=pipeline.TokenizationPlan(tokenize=lambda texts, first=0: []),
        outputs=(),
        batch_size=256,
        devices=(),
    )
    windows = [(0, [np.ones(length, np.int64) for length in range(1, 201)])]
    running = [gpu, gpu, cpu] if gpu_first else [cpu, gpu, gpu]
    batches = list(pipeline._make_batches(windows, plan, engines, running))
    assert sum(len(batch.rows) for batch in batches) == 200
    for batch in batches:
        assert batch.input_ids.size <= 512
        assert batch.attention_mask.size - batch.attention_mask.sum() <= 16


@PROPERTY
@given(st.lists(st.lists(st.integers(1, 9000), min_size=1, max_size=40), min_size=1, max_size=20))
def test_padding_is_on_the_right_and_masked_out(rows):
    ids, mask = pad_batch([np.array(row) for row in rows], pad_token_id=0)
    longest = max(len(row) for row in rows)
    assert ids.shape == mask.shape == (len(rows), longest)
    assert ids.dtype == mask.dtype == np.int64
    for row, padded, marks in zip(rows, ids, mask, strict=True):
        rest = longest - len(row)
        assert padded.tolist() == row + [0] * rest
        assert marks.tolist() == [1] * len(row) + [0] * rest


def test_padding_is_filled_with_the_models_own_pad_token():
    ids, _ = pad_batch([np.array([5]), np.array([6, 7])], pad_token_id=1)
    assert ids.tolist() == [[5, 1], [6, 7]]


words = st.text(max_size=30) | st.sampled_from(TEXTS)
texts_of_mixed_length = st.lists(
    words | st.builds(lambda word, times: f"{word} " * times, words, st.integers(1, 40)),
    max_size=40,
)


@PROPERTY
@given(texts_of_mixed_length, st.integers(1, 12), st.sampled_from([1, 2, 5, 2048]))
def test_a_text_gets_the_same_vector_in_any_company(model, texts, batch_size, window):
    assert_fp32_on_cpu(model)
    # Real calls overlap tokenising and computing only beyond 2,048 texts.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bge_runtime.encoding.pipeline._WINDOW", window)
        together = model.encode(texts, batch_size=batch_size)
    assert together.shape == (len(texts), 48)
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(row, model.encode(text), rtol=0, atol=SAME_VALUE)


def test_more_texts_than_a_window_come_back_in_input_order(model):
    texts = [f"text number {number} " * (1 + number % 7) for number in range(4500)]
    vectors = model.encode(texts)
    chosen = [0, 1, 2047, 2048, 2049, 4095, 4096, 4499]
    alone = np.stack([model.encode(texts[row]) for row in chosen])
    np.testing.assert_allclose(vectors[chosen], alone, rtol=0, atol=SAME_VALUE)
    # Rows in another order would have been noticed: no two of these are near.
    between = np.linalg.norm(alone[:, None] - alone[None], axis=-1)
    assert between[~np.eye(len(chosen), dtype=bool)].min() > 100 * SAME_VALUE
