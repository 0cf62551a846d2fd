import numpy as np
import pytest

from bge_bench.datasets import metrics
from bge_bench.datasets.metrics import (
    linear_correlation,
    ndcg,
    rank_correlation,
    recall,
    reciprocal_rank,
    search,
)

FOUND = np.array([[3, 1, 0, 2], [5, 4, 3, 2], [5, 4, 0, 1], [3, 1, 0, 2]])
GRADES = [{1: 3, 2: 2, 5: 1}, {0: 1}, {4: 1, 5: 0}, {3: 1, 1: 1}]


def test_scores_are_those_of_pytrec_eval():
    # ndcg_cut.3, recall.3 and recip_rank of pytrec_eval-terrier 0.5.11 on the same.
    assert ndcg(FOUND, GRADES, at=3) == pytest.approx(
        [0.39748952229168844, 0, 0.6309297535714575, 1]
    )
    assert recall(FOUND, GRADES, at=3) == pytest.approx([1 / 3, 0, 1, 1])
    assert reciprocal_rank(FOUND, GRADES, at=3) == pytest.approx([0.5, 0, 0.5, 1])


def test_what_is_found_behind_the_cut_does_not_count():
    found, grades = np.array([[7, 8, 9]]), [{9: 1}]
    for score in (ndcg, recall, reciprocal_rank):
        assert score(found, grades, at=2) == [0]
        assert score(found, grades, at=3) > 0


def test_a_grade_below_zero_is_not_relevant():
    found, grades = np.array([[0, 1]]), [{0: -2, 1: 1}]
    assert ndcg(found, grades, at=2) == pytest.approx([1 / np.log2(3)])
    assert recall(found, grades, at=1) == [0]
    assert reciprocal_rank(found, grades, at=2) == [0.5]


class TestSearch:
    def test_finds_what_a_full_sort_finds_whatever_the_blocks(self, monkeypatch):
        chance = np.random.default_rng(0)
        # Of few values, so that many passages are tied, at the cut as well.
        queries, corpus = (
            chance.integers(-2, 3, size=(n, 4)).astype(np.float32) for n in (23, 200)
        )
        expected = np.argsort(-(queries @ corpus.T), axis=1, kind="stable")
        for block_scores in (1, 1000, 1 << 24):
            monkeypatch.setattr(metrics, "_BLOCK_SCORES", block_scores)
            for depth in (1, 7, 200):
                assert (search(queries, corpus, depth=depth) == expected[:, :depth]).all()

    def test_finds_all_of_a_small_corpus(self):
        found = search(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), depth=100)
        assert found.tolist() == [[0, 1], [1, 0]]


def test_correlations_of_values_known_by_hand():
    gold = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(np.array([1.0, 4.0, 9.0, 16.0]), gold) == pytest.approx(1)
    assert linear_correlation(2 * gold - 7, gold) == pytest.approx(1)
    # Ranks 1, 2.5, 2.5, 4: 4.5 / sqrt(4.5 * 5).
    tied = np.array([0.0, 1.0, 1.0, 2.0])
    assert rank_correlation(tied, gold) == pytest.approx(4.5 / np.sqrt(22.5))
    assert rank_correlation(-gold, gold) == pytest.approx(-1)
