"""Parity of scores: every limit counts, NaN fails, and it survives the manifest."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from bge_runtime.bundle import (
    SCORE_TOLERANCES,
    SECOND_TEXT,
    TOLERANCES,
    PairReference,
    ScoreParity,
    compare_scores,
    parse_parity,
)
from bge_runtime.bundle.reference import load_reference

GOOD = ScoreParity(pairs=3, max_error=0.0, error_share=0.0, rank_correlation=1.0)
LOGITS = np.array([4.0, -2.0, 1.0, 7.5], dtype=np.float32)


def test_scores_have_a_tolerance_in_every_precision_of_vectors():
    assert SCORE_TOLERANCES.keys() == TOLERANCES.keys()


@pytest.mark.parametrize("precision", SCORE_TOLERANCES)
def test_each_figure_has_a_limit_and_nan_misses_it(precision: str):
    assert GOOD.worst(GOOD).failures(precision) == []
    limits = SCORE_TOLERANCES[precision]
    beyond = {
        "error_share": limits.max_error_share * 1.01,
        "rank_correlation": limits.min_rank_correlation - 0.01,
    }
    if limits.max_error is not None:
        beyond["max_error"] = limits.max_error * 1.01
    for name, value in beyond.items():
        for bad in (value, float("nan")):
            parity = replace(GOOD, **{name: bad})
            assert len(parity.failures(precision)) == 1, (name, bad)
            assert parity.worst(GOOD).failures(precision), (name, bad)
            assert GOOD.worst(parity).failures(precision), (name, bad)


def test_scores_are_compared_by_error_and_order():
    assert compare_scores(LOGITS, LOGITS) == replace(GOOD, pairs=4)
    reversed_order = compare_scores(-LOGITS, LOGITS)
    assert reversed_order.rank_correlation == -1
    # 6 of the pairs' differences: 6, 3, 3.5, 3, 9.5 and 6.5. Their median is 4.75.
    shifted = compare_scores(LOGITS + np.float32(0.5), LOGITS)
    assert shifted.max_error == 0.5
    assert shifted.error_share == pytest.approx(0.5 / 4.75)
    assert shifted.rank_correlation == 1


def test_scores_that_became_equal_lose_their_order():
    equal = compare_scores(np.zeros(4), LOGITS)
    assert equal.rank_correlation == 0
    assert equal.failures("int4")


def test_parity_of_scores_survives_json():
    worst = replace(GOOD, max_error=float("nan"))
    for document in (worst.to_json(), asdict(GOOD)):
        read = parse_parity(json.loads(json.dumps(document)))
        assert isinstance(read, ScoreParity)
        assert bool(read.failures("fp32")) == (document["max_error"] is None)


def test_pairs_survive_their_file_with_their_token_types(tmp_path: Path):
    rows = (np.array([101, 7, 102, 9 + SECOND_TEXT, 102 + SECOND_TEXT]), np.array([101, 102]))
    reference = PairReference(
        queries=("a query", ""),
        passages=("", "图书馆"),
        token_ids=rows,
        logits=LOGITS[:2],
        max_length=512,
    )
    reference.save(tmp_path / "parity.npz")
    read = load_reference(tmp_path / "parity.npz")
    assert isinstance(read, PairReference)
    assert (read.queries, read.passages) == (reference.queries, reference.passages)
    assert read.max_length == 512
    assert [ids.tolist() for ids in read.token_ids] == [ids.tolist() for ids in rows]
    assert read.logits.tolist() == LOGITS[:2].tolist()


def test_one_pair_is_not_enough_to_compare():
    with pytest.raises(ValueError, match="n >= 2"):
        compare_scores(LOGITS[:1], LOGITS[:1])
