"""What a reranker promises besides FlagEmbedding's scores."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from bge_export.parity_pairs import PARITY_PAIRS
from bge_runtime import FlagReranker
from bge_runtime.bundle import SECOND_TEXT
from bge_runtime.errors import NotFiniteError
from tests.helpers.rerankers import reranker_bundle

ROUNDING = 2e-5
"""Differences of fp32 logits by the order of summation, in batches of another shape."""

PASSAGES = [passage for _, passage in PARITY_PAIRS]
QUERY = PARITY_PAIRS[0][0]


def test_a_score_does_not_depend_on_the_other_pairs_of_its_batch(reranker):
    together = reranker.compute_score(PARITY_PAIRS)
    alone = [reranker.compute_score(pair)[0] for pair in PARITY_PAIRS]
    np.testing.assert_allclose(together, alone, rtol=0, atol=ROUNDING)
    order = random.Random(3).sample(range(len(PARITY_PAIRS)), len(PARITY_PAIRS))
    shuffled = reranker.compute_score([PARITY_PAIRS[row] for row in order], batch_size=5)
    np.testing.assert_allclose(shuffled, [together[row] for row in order], rtol=0, atol=ROUNDING)


def test_rerank_returns_the_best_passages_with_their_places(reranker):
    every = reranker.rerank(QUERY, PASSAGES)
    best = reranker.rerank(QUERY, PASSAGES, 3)
    assert [each.index for each in best] == [each.index for each in every[:3]]
    assert reranker.rerank(QUERY, PASSAGES, 1000) == every
    scores = reranker.compute_score([(QUERY, passage) for passage in PASSAGES])
    for each in every:
        assert each.passage == PASSAGES[each.index]
        assert each.score == pytest.approx(scores[each.index], abs=ROUNDING)


def test_equal_passages_keep_their_order(reranker):
    ranked = reranker.rerank(QUERY, ["same", "same", "same"])
    assert [each.index for each in ranked] == [0, 1, 2]
    assert len({each.score for each in ranked}) == 1


def test_normalized_scores_are_between_0_and_1(reranker):
    found = reranker.rerank(QUERY, PASSAGES, normalize=True)
    logits = {each.index: each.score for each in reranker.rerank(QUERY, PASSAGES)}
    for each in found:
        assert each.score == pytest.approx(1 / (1 + np.exp(-logits[each.index])), abs=1e-5)


def test_nothing_to_rank_is_an_empty_list(reranker):
    assert reranker.rerank(QUERY, []) == []
    assert reranker.compute_score([]) == []


def test_token_types_tell_query_and_passage_apart(made_once):
    """Of an architecture that reads them: without them scores are others."""
    del made_once
    model = FlagReranker(str(reranker_bundle("bert")), engine="onnxruntime")
    rows = model.pair_plan("what is ice").tokenize(["frozen water", "ice"])
    assert all((row >= SECOND_TEXT).any() for row in rows)
    engine, (ids, _) = model.engine, rows
    ids = ids[None]
    mask = np.ones_like(ids)
    (with_types,) = engine.run(ids, mask, ["logits"])
    (without,) = engine.run(ids % SECOND_TEXT, mask, ["logits"])
    assert abs(with_types - without).max() > 0.01


def test_exchanged_texts_have_another_score(reranker):
    pairs = PARITY_PAIRS[:10]
    exchanged = [(passage, query) for query, passage in pairs]
    there, back = reranker.compute_score(pairs), reranker.compute_score(exchanged)
    assert np.abs(np.array(there) - back).max() > 0.01


def test_a_copy_has_the_same_scores(reranker):
    copied = pickle.loads(pickle.dumps(reranker))
    assert copied.compute_score(PARITY_PAIRS[:3]) == reranker.compute_score(PARITY_PAIRS[:3])


def test_scores_that_are_no_numbers_are_refused_with_the_place(reranker, monkeypatch):
    engine = reranker.engine
    run = engine.run

    def broken(ids, *args, **options):
        (logits,) = run(ids, *args, **options)
        return [np.full_like(logits, np.nan)]

    monkeypatch.setattr(engine, "run", broken)
    with pytest.raises(NotFiniteError, match=r"passages\[0\] has NaN or infinity in its logits"):
        reranker.rerank("q", ["p"])
    with pytest.raises(NotFiniteError, match=r"sentence_pairs\[0\] has NaN"):
        reranker.compute_score([("q", "p")])


def test_parallel_batches_change_scores_by_rounding_only(made_once):
    del made_once
    passages = [f"{passage} {number}" for number in range(40) for passage in PASSAGES[:8]]
    found = []
    for parallel in (True, False):
        model = FlagReranker(
            str(reranker_bundle("xlm-roberta")), parallel_batches=parallel, threads=2
        )
        found.append(model.compute_score([(QUERY, passage) for passage in passages]))
    np.testing.assert_allclose(*found, rtol=0, atol=ROUNDING)
