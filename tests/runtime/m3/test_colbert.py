"""ColBERT vectors and the scores of pairs are FlagEmbedding's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.encoding.postprocess import normalize, truncate
from bge_runtime.engines.batch_arrays import split_by_text
from bge_runtime.m3 import colbert
from bge_runtime.m3.colbert import (
    colbert_pair_scores,
    colbert_score,
    colbert_score_matrix,
    colbert_scores,
    colbert_vectors,
    padded_in_batches,
)
from bge_runtime.m3.lexical import LexicalWeights, lexical_pair_scores
from bge_runtime.m3.scoring import checked_weights, combine_scores, dense_pair_scores
from tests.helpers.m3 import EXCLUDED, Text, Upstream
from tests.helpers.runtime import PROPERTY, SAME_VALUE


def texts_of(*lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [Text.random(generator, length) for length in lengths]


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dim", [None, 3, 100])
def test_vectors_equal_flagembedding(normalized, dim):
    texts = texts_of(9, 2, 5, 3, 2)
    upstream = Upstream(texts, normalize=normalized, truncate_dim=dim)
    expected = upstream.encode(return_colbert_vecs=True)["colbert_vecs"]
    _, mask, _, raw, _ = upstream.graph(range(len(texts)))
    ours = colbert_vectors(raw, mask, normalize=normalized, dim=dim)
    # As it comes from a graph without padding.
    flat = np.concatenate([raw[:, :1], raw], axis=1)[mask == 1]
    unpadded = split_by_text("colbert_vecs", flat, mask)
    assert all(np.shares_memory(row, flat) for row in unpadded if row.size)
    for one, other in zip(
        colbert_vectors(unpadded, mask, normalize=normalized, dim=dim), ours, strict=True
    ):
        np.testing.assert_array_equal(one, other)
        assert not np.shares_memory(one, flat)
    for left, right, text in zip(ours, expected, texts, strict=True):
        assert left.dtype == right.dtype == np.float32
        assert left.shape == right.shape == (len(text.ids) - 1, min(dim or 8, 8))
        np.testing.assert_allclose(left, right, rtol=0, atol=SAME_VALUE)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dim", [None, 4])
def test_vectors_do_not_keep_the_batch_alive(normalized, dim):
    raw, mask = np.ones((2, 4, 8), np.float32), np.ones((2, 5), np.int64)
    for vectors in colbert_vectors(raw, mask, normalize=normalized, dim=dim):
        assert vectors.flags.owndata
        assert vectors.flags.c_contiguous


def test_a_vector_of_zeros_stays_one():
    raw, mask = np.zeros((1, 2, 8), np.float32), np.ones((1, 3), np.int64)
    assert colbert_vectors(raw, mask, normalize=True, dim=None)[0].tolist() == [[0.0] * 8] * 2


def test_no_texts_have_no_vectors():
    raw, mask = np.zeros((0, 2, 8), np.float32), np.ones((0, 3), np.int64)
    assert colbert_vectors(raw, mask, normalize=True, dim=None) == []


def vectors(generator, length, width=5):
    return generator.normal(size=(length, width)).astype(np.float32)


LENGTHS = st.lists(st.integers(1, 9), max_size=7)


@PROPERTY
@given(LENGTHS, LENGTHS, st.integers(0, 99), st.sampled_from([1, 4, 1000]))
def test_scores_equal_flagembedding(lengths, other_lengths, seed, block):
    generator = np.random.default_rng(seed)
    queries = [vectors(generator, length) for length in lengths]
    passages = [vectors(generator, length) for length in other_lengths]
    theirs = Upstream([]).embedder.colbert_score
    expected = [[float(theirs(query, passage)) for passage in passages] for query in queries]
    # However the products are cut into blocks.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colbert, "_BLOCK_PASSAGE_ROWS", block)
        patch.setattr(colbert, "_BLOCK_QUERY_ROWS", block)
        ours = colbert_score_matrix(queries, passages)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        ours, np.reshape(expected, (len(queries), len(passages))), rtol=0, atol=SAME_VALUE
    )
    if queries:
        np.testing.assert_array_equal(colbert_scores(queries[0], passages).shape, len(passages))
        count = min(len(queries), len(passages))
        pairs = colbert_pair_scores(queries[:count], passages[:count])
        np.testing.assert_allclose(pairs, np.diagonal(ours)[:count], rtol=0, atol=SAME_VALUE)


def test_one_score_is_a_numpy_scalar():
    generator = np.random.default_rng(0)
    query, passage = vectors(generator, 3), vectors(generator, 4)
    ours, theirs = colbert_score(query, passage), Upstream([]).embedder.colbert_score
    assert type(ours) is np.float32
    assert ours == pytest.approx(float(theirs(query, passage)), abs=SAME_VALUE)


def test_vectors_that_were_stored_in_half_precision_are_scored_in_single():
    generator = np.random.default_rng(0)
    query, passage = (vectors(generator, length).astype(np.float16) for length in (3, 4))
    assert type(colbert_score(query, passage)) is np.float32
    single = colbert_score(query.astype(np.float32), passage.astype(np.float32))
    assert colbert_score(query, passage) == single
    assert colbert_pair_scores([query], [passage]) == single


@pytest.mark.parametrize(
    ("query", "passage"),
    [((0, 5), (3, 5)), ((3, 5), (0, 5)), ((3, 5), (3, 4)), ((5,), (3, 5)), ((3, 5), (1, 3, 5))],
)
def test_texts_that_cannot_be_scored_are_refused(query, passage):
    query, passage = np.ones(query, np.float32), np.ones(passage, np.float32)
    for call in (
        lambda: colbert_score(query, passage),
        lambda: colbert_pair_scores([query], [passage]),
    ):
        with pytest.raises(ValueError, match=r"shape \(tokens, dim\)"):
            call()


def test_pairs_must_be_as_many_on_both_sides():
    one = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="not 1 and 2"):
        colbert_pair_scores([one], [one, one])


def computed(upstream, rows, *, truncate_dim=None):
    """Our outputs for some texts, computed one by one: no padding anywhere."""
    dense, sparse, colbert = [], [], []
    for row in rows:
        ids, mask, weights, raw, hidden = upstream.graph([row])
        dense.append(normalize(truncate(hidden, truncate_dim)))
        sparse.append(LexicalWeights.from_tokens(weights, ids, mask, excluded=EXCLUDED))
        colbert.extend(colbert_vectors(raw, mask, normalize=True, dim=truncate_dim))
    joined = LexicalWeights.concatenate(sparse, np.arange(len(sparse)))
    return np.concatenate(dense), joined, colbert


PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7), (1, 0)]
LENGTHS_OF_PAIRS = (5, 30, 7, 4, 2, 2, 12, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 256])
@pytest.mark.parametrize("weights", [None, [0.4, 0.2, 0.4], [1, 0, 3], (2, -1, 0.5)])
def test_scores_of_pairs_equal_flagembedding(batch_size, weights):
    upstream = Upstream(texts_of(*LENGTHS_OF_PAIRS))
    expected = upstream.compute_score(
        PAIRS, batch_size=batch_size, weights_for_different_modes=weights
    )
    queries = computed(upstream, [query for query, _ in PAIRS])
    passages = computed(upstream, [passage for _, passage in PAIRS])
    padded = padded_in_batches([len(vectors) for vectors in passages[2]], batch_size=batch_size)
    ours = combine_scores(
        dense_pair_scores(queries[0], passages[0]),
        lexical_pair_scores(queries[1], passages[1]),
        colbert_pair_scores(queries[2], passages[2], clip_negative=padded),
        checked_weights(weights),
    )
    assert list(ours) == list(expected)
    for key in ours:
        assert {type(score) for score in ours[key]} == {float}
        np.testing.assert_allclose(ours[key], expected[key], rtol=0, atol=SAME_VALUE)


def test_flagembeddings_scores_depend_on_batch_mates_and_ours_do_not():
    upstream = Upstream(texts_of(*LENGTHS_OF_PAIRS))
    alone = upstream.compute_score(PAIRS, batch_size=1)["colbert"]
    together = upstream.compute_score(PAIRS)["colbert"]
    assert max(np.abs(np.subtract(alone, together))) > 100 * SAME_VALUE
    queries = computed(upstream, [query for query, _ in PAIRS])[2]
    passages = computed(upstream, [passage for _, passage in PAIRS])[2]
    ours = colbert_pair_scores(queries, passages)
    np.testing.assert_allclose(ours, alone, rtol=0, atol=SAME_VALUE)


@PROPERTY
@given(st.lists(st.integers(1, 5), max_size=12), st.integers(1, 14))
def test_padded_texts_are_those_shorter_than_the_longest_of_their_batch(lengths, batch_size):
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    expected = [length < max(batch) for batch in batches for length in batch]
    assert padded_in_batches(lengths, batch_size=batch_size).tolist() == expected


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 1, 1, 1], [1, -1, 0], [0, 0, 0], ["a", 1, 1], 3, [1, None, 1], "abc"]
)
def test_weights_that_are_not_three_numbers_are_refused(weights):
    with pytest.raises(ValueError, match="three numbers"):
        checked_weights(weights)


def test_colbert_alone_may_be_asked_for_as_from_flagembedding():
    upstream = Upstream(texts_of(5, 7))
    expected = upstream.compute_score([(0, 1)], weights_for_different_modes=[0, 0, 1])
    scores = [np.float32(expected[key]) for key in ("dense", "sparse", "colbert")]
    ours = combine_scores(*scores, checked_weights([0, 0, 1]))
    assert ours["colbert+sparse+dense"] == expected["colbert+sparse+dense"]
    assert np.isnan([ours["sparse+dense"], expected["sparse+dense"]]).all()


def test_no_pairs_have_no_scores():
    none = np.empty(0, np.float32)
    assert colbert_pair_scores([], []).shape == (0,)
    assert set(map(tuple, combine_scores(none, none, none, (1, 1, 1)).values())) == {()}
