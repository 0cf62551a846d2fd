"""Scores are FlagEmbedding's: values, order, types and what is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_export.parity_pairs import PARITY_PAIRS
from bge_runtime import FlagReranker
from bge_runtime.bundle import SECOND_TEXT
from tests.helpers.pairs import rankings
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint

TOLERANCE = 1e-4
"""Largest difference of logits in fp32, for which a drop-in replacement is taken."""

EDGES = [
    ("", ""),
    ("", "a passage without a query"),
    ("a query without a passage", ""),
    ("same", "same"),
    ("why is the sky blue", "because " * 900),
    ("a long question " * 200, "a short answer"),
    ("a long question " * 200, "a long answer " * 300),
    ("[SEP] </s> <pad> [CLS]", "</s></s> [SEP]"),
    ("ﬁ ½ ＦＵＬＬ", "naïve İstanbul 🎉"),
]


def check_order(ours, theirs):
    """Check that the order is the same wherever scores differ by more than the tolerance."""
    ours, theirs = np.array(ours), np.array(theirs)
    apart = theirs[:, None] - theirs[None, :] > TOLERANCE
    assert (ours[:, None] > ours[None, :])[apart].all()


def test_scores_are_those_of_flag_embedding(reranker, theirs):
    pairs = [*PARITY_PAIRS, *EDGES]
    expected = theirs(pairs)
    found = reranker.compute_score(pairs)
    assert type(found) is type(expected)
    assert {type(score) for score in found} == {type(score) for score in expected} == {float}
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    check_order(found, expected)
    assert np.std(found) > 100 * TOLERANCE, "scores of a broken model could not be told apart"


@pytest.mark.parametrize("language", rankings())
def test_passages_are_in_the_order_of_flag_embedding(reranker, theirs, language):
    query, passages = rankings()[language]
    expected = np.array(theirs([(query, passage) for passage in passages]))
    ranked = reranker.rerank(query, passages)
    assert sorted(each.index for each in ranked) == list(range(len(passages)))
    assert [each.passage for each in ranked] == [passages[each.index] for each in ranked]
    scores = [each.score for each in ranked]
    assert scores == sorted(scores, reverse=True)
    in_our_order = expected[[each.index for each in ranked]]
    np.testing.assert_allclose(scores, in_our_order, rtol=0, atol=TOLERANCE)
    check_order(scores, in_our_order)


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": True},
        {"max_length": 40},
        {"max_length": 40, "query_max_length": 5},
        {"max_length": 64, "query_max_length": 30, "batch_size": 3},
        {"max_length": 24, "normalize": True},
    ],
    ids=str,
)
def test_options_have_the_effect_of_flag_embedding(reranker, theirs, options):
    pairs = [*PARITY_PAIRS[:20], *EDGES[3:7]]
    expected = theirs(pairs, **options)
    np.testing.assert_allclose(
        reranker.compute_score(pairs, **options), expected, rtol=0, atol=TOLERANCE
    )


def test_instructions_are_put_before_texts(reranker, upstream_rerankers, family):
    instructions = {
        "query_instruction_for_rerank": "find: ",
        "query_instruction_format": "{}<{}>\\n",
        "passage_instruction_for_rerank": "text: ",
    }
    pairs = [PARITY_PAIRS[3], PARITY_PAIRS[7], PARITY_PAIRS[12]]
    ours = FlagReranker(str(reranker_bundle(family)), engine="onnxruntime", **instructions)
    checkpoint = str(reranker_checkpoint(family))
    other = upstream_rerankers.FlagReranker(checkpoint, devices="cpu", **instructions)
    found = ours.compute_score(pairs)
    np.testing.assert_allclose(found, other.compute_score(pairs), rtol=0, atol=TOLERANCE)
    assert np.abs(np.array(found) - reranker.compute_score(pairs)).max() > 10 * TOLERANCE


def test_one_pair_is_a_list_of_one_score(reranker, theirs):
    pair = ["what is a heat pump", "a heat pump moves warmth"]
    for given_pair in (pair, tuple(pair), [pair], np.array(pair)):
        (score,) = reranker.compute_score(given_pair)
        assert score == pytest.approx(theirs(pair)[0], abs=TOLERANCE)


WORDS = st.sampled_from(["a", "river", "图书馆", "[SEP]", "Zürich", "3.14", "🎉", "</s>", "xyzzy"])
TEXTS = st.lists(WORDS, max_size=30).map(" ".join)


@pytest.fixture(scope="session")
def checkpoint_tokenizer(made_once, family):
    """The checkpoint's own tokenizer, in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(reranker_checkpoint(family)))


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6), length=st.integers(18, 80))
def test_any_pairs_have_the_tokens_of_flag_embedding(reranker, checkpoint_tokenizer, pairs, length):
    takes_types = reranker.bundle.manifest.model.architecture == "bert"
    for query, passage in pairs:
        first, second = (
            checkpoint_tokenizer(text, add_special_tokens=False, truncation=True, max_length=limit)[
                "input_ids"
            ]
            for text, limit in ((query, length * 3 // 4), (passage, length))
        )
        item = checkpoint_tokenizer.prepare_for_model(
            first, second, truncation="only_second", max_length=length, padding=False
        )
        (row,) = reranker.pair_plan(query, max_length=length).tokenize([passage])
        types, ids = np.divmod(row, SECOND_TEXT)
        assert ids.tolist() == item["input_ids"]
        assert types.tolist() == (item["token_type_ids"] if takes_types else [0] * len(row))


def test_a_pair_is_cut_where_flag_embedding_gives_up(reranker):
    """There the row is longer than ``max_length``, since its passage is short."""
    (row,) = reranker.pair_plan("a long question " * 20, max_length=16).tokenize(["short"])
    assert len(row) == 16
    (cut,) = reranker.pair_plan("why " * 40, max_length=20, query_max_length=90).tokenize(["x"])
    assert len(cut) == 20


def test_further_methods_are_those_of_flag_embedding(upstream_rerankers, family):
    instructions = {"query_instruction_for_rerank": "find: ", "passage_instruction_format": "{}|{}"}
    ours = FlagReranker(str(reranker_bundle(family)), engine="onnxruntime", **instructions)
    checkpoint = str(reranker_checkpoint(family))
    other = upstream_rerankers.FlagReranker(checkpoint, devices="cpu", **instructions)
    pairs = PARITY_PAIRS[:3]
    assert ours.get_detailed_inputs(pairs) == other.get_detailed_inputs(pairs)
    scores = ours.encode_multi_process(pairs, ours.start_multi_process_pool(), max_length=64)
    assert isinstance(scores, np.ndarray)
    np.testing.assert_allclose(scores, other.compute_score(pairs, max_length=64), atol=TOLERANCE)
    single = ours.compute_score_single_gpu(pairs, 2, None, 64, False, "cpu")
    np.testing.assert_allclose(single, scores, rtol=0, atol=TOLERANCE)
