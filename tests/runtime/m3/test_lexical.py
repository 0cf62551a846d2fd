"""Lexical weights and their matching are FlagEmbedding's."""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime.m3 import lexical
from bge_runtime.m3.lexical import LexicalWeights, lexical_pair_scores, matching_scores
from tests.helpers.m3 import CLS, EOS, EXCLUDED, FIRST, PAD, UNK, Text, Upstream
from tests.helpers.runtime import PROPERTY, SAME_VALUE


def from_rows(rows, *, width=None, by_id=False, excluded=EXCLUDED):
    """Weights of texts given as lists of (id, weight).

    The padding would count if its mask were ignored.
    """
    width = max([1, *map(len, rows)]) if width is None else width
    ids = np.full((len(rows), width), FIRST, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    weights = np.full((len(rows), width), 9, dtype=np.float32)
    for index, row in enumerate(rows):
        mask[index, : len(row)] = 1
        for column, (token_id, weight) in enumerate(row):
            ids[index, column], weights[index, column] = token_id, weight
    return LexicalWeights.from_tokens(weights, ids, mask, excluded=excluded, by_id=by_id)


def by_the_rule(rows, *, excluded=EXCLUDED):
    """FlagEmbedding's rule, token by token."""
    result = []
    for row in rows:
        kept = defaultdict(int)
        for token_id, weight in row:
            if token_id not in excluded and weight > kept.get(str(token_id), 0):
                kept[str(token_id)] = np.float32(weight)
        result.append(kept)
    return result


def assert_same_dicts(ours, theirs):
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert type(left) is type(right)
        assert list(left.items()) == list(right.items())
        assert {type(key) for key in left} <= {str}
        assert {type(value) for value in left.values()} <= {np.float32}
        assert left["not there"] == right["not there"] == 0


WEIGHT = st.floats(-1, 1, width=32)
ROW = st.lists(st.tuples(st.integers(0, 12), WEIGHT), max_size=12)
ROWS = st.lists(ROW, max_size=6)


@pytest.mark.parametrize("batch_size", [3, 256])
def test_dictionaries_equal_flagembedding(batch_size):
    generator = np.random.default_rng(0)
    texts = [Text.random(generator, length) for length in (2, 90, 3, 40, 41, 2, 7)]
    upstream = Upstream(texts)
    expected = upstream.encode(return_sparse=True, batch_size=batch_size)["lexical_weights"]
    rows = np.array([1, 4, 3, 6, 2, 0, 5])
    parts = []
    for batch in (rows[:4], rows[4:]):
        ids, mask, weights, _, _ = upstream.graph(batch)
        parts.append(LexicalWeights.from_tokens(weights, ids, mask, excluded=EXCLUDED))
    ours = LexicalWeights.concatenate(parts, rows).to_dicts()
    assert_same_dicts(ours, expected)
    assert 0 < sum(map(len, ours)) < sum(len(text.ids) for text in texts)


def test_the_rule_of_these_tests_is_flagembeddings():
    generator = np.random.default_rng(1)
    texts = [Text.random(generator, length) for length in (30, 60)]
    upstream = Upstream(texts)
    ids, mask, weights, _, _ = upstream.graph([0, 1])
    rows = [
        list(zip(ids[index][mask[index] == 1], weights[index][mask[index] == 1], strict=True))
        for index in (0, 1)
    ]
    assert_same_dicts(by_the_rule(rows), upstream.encode(return_sparse=True)["lexical_weights"])


@PROPERTY
@given(ROWS, st.integers(0, 3))
def test_any_batch_follows_the_rule(rows, padding):
    width = max([1, *map(len, rows)]) + padding
    assert_same_dicts(from_rows(rows, width=width).to_dicts(), by_the_rule(rows))


@PROPERTY
@given(ROWS, st.randoms(use_true_random=False))
def test_batches_are_joined_in_input_order(rows, random):
    positions = list(range(len(rows)))
    random.shuffle(positions)
    cut = len(rows) // 2
    parts = [
        from_rows([rows[position] for position in part])
        for part in (positions[:cut], positions[cut:])
    ]
    joined = LexicalWeights.concatenate(parts, np.array(positions, dtype=np.int64))
    assert_same_dicts(joined.to_dicts(), by_the_rule(rows))


def test_the_first_place_with_weight_decides_the_order():
    rows = [[(9, 0), (5, 0.5), (9, 0.25), (5, 1), (7, 0.125)]]
    assert list(from_rows(rows).to_dicts()[0].items()) == [("5", 1), ("9", 0.25), ("7", 0.125)]


def test_special_tokens_are_left_out_but_the_mask_token_is_not():
    mask_token = 250001
    rows = [[(CLS, 1), (mask_token, 0.5), (UNK, 1), (PAD, 1), (EOS, 1)]]
    assert from_rows(rows).to_dicts() == [{str(mask_token): 0.5}]


@PROPERTY
@given(rows=ROWS, excluded=st.sets(st.integers(0, 14)))
def test_any_ids_can_be_left_out(rows, excluded):
    ours = from_rows(rows, excluded=sorted(excluded, key=str))
    assert_same_dicts(ours.to_dicts(), by_the_rule(rows, excluded=excluded))


@PROPERTY
@given(rows=ROWS)
def test_weights_by_id_are_the_same_ones_sorted(rows):
    ours, expected = from_rows(rows, by_id=True), from_rows(rows)
    assert [list(row) for row in ours.to_dicts()] == [
        sorted(row, key=int) for row in expected.to_dicts()
    ]
    assert ours.to_dicts() == expected.to_dicts()
    matrix = ours.to_csr(20)
    assert (matrix != expected.to_csr(20)).nnz == 0
    matrix.data[:] = 0
    assert (ours.weights > 0).all(), "the matrix has memory of its own"


def test_no_weight_is_lost_to_its_size():
    least = np.finfo(np.float32).smallest_subnormal
    rows = [[(5, least), (6, np.finfo(np.float32).max), (7, np.inf), (8, np.nan)]]
    assert_same_dicts(from_rows(rows).to_dicts(), by_the_rule(rows))
    assert len(from_rows(rows).token_ids) == 3


def test_ids_and_lengths_that_do_not_fit_32_bits_together():
    high = np.iinfo(np.int32).max
    ids = np.tile(np.array([[high, 5, high, 6]], dtype=np.int64), (2, 3000))
    weights = np.tile(np.float32([0.25, 0, 0.5, 0.125]), (2, 3000))
    ours = LexicalWeights.from_tokens(weights, ids, np.ones_like(ids), excluded=EXCLUDED)
    assert ours.token_ids.tolist() == [high, 6] * 2
    assert ours.weights.tolist() == [0.5, 0.125] * 2


@pytest.mark.parametrize("rows", [[], [[]], [[], [(5, -1.0)], [(CLS, 1.0)]]])
def test_texts_without_weights(rows):
    ours = from_rows(rows)
    assert ours.to_dicts() == [{} for _ in rows]
    assert ours.to_csr(10).shape == (len(rows), 10)
    assert matching_scores(ours, ours).tolist() == np.zeros((len(rows), len(rows))).tolist()


def test_the_arrays_have_their_types():
    for ours in (from_rows([[(5, 0.5)]]), from_rows([]), LexicalWeights.concatenate([], [])):
        dtypes = ours.indptr.dtype, ours.token_ids.dtype, ours.weights.dtype
        assert dtypes == (np.int64, np.int32, np.float32)


@PROPERTY
@given(ROWS)
def test_the_matrix_holds_the_dictionaries(rows):
    ours = from_rows(rows)
    expected = np.zeros((len(rows), 13), dtype=np.float32)
    for index, row in enumerate(by_the_rule(rows)):
        for key, weight in row.items():
            expected[index, int(key)] = weight
    matrix = ours.to_csr(13)
    assert matrix.dtype == np.float32
    assert matrix.has_sorted_indices
    assert matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), expected)


def test_making_a_matrix_leaves_the_order_of_the_text():
    ours = from_rows([[(9, 0.5), (5, 0.25)]])
    ours.to_csr(10)
    assert ours.token_ids.tolist() == [9, 5]


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match=r"token id 9 .* vocab_size is 9"):
        from_rows([[(9, 0.5)]]).to_csr(9)


def test_a_matrix_without_scipy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"pip install 'bge-runtime\[sparse\]'"):
        from_rows([[(5, 0.5)]]).to_csr(10)


@PROPERTY
@given(ROWS)
def test_dictionaries_are_read_back(rows):
    ours = from_rows(rows)
    for dicts in (
        ours.to_dicts(),
        [{int(key): w for key, w in d.items()} for d in ours.to_dicts()],
    ):
        again = LexicalWeights.from_dicts(dicts)
        for name in ("indptr", "token_ids", "weights"):
            np.testing.assert_array_equal(getattr(again, name), getattr(ours, name))


def test_keys_that_are_no_ids_are_refused():
    with pytest.raises(ValueError, match=r"token ids .*'what'"):
        LexicalWeights.from_dicts([{"what": 0.5}])


@pytest.fixture(scope="module")
def upstream():
    return Upstream([]).embedder


def plain(dicts):
    return [{key: float(weight) for key, weight in row.items()} for row in dicts]


@PROPERTY
@given(ROWS, ROWS, st.sampled_from([1, lexical._DENSE_COST, 1 << 40]))
def test_matching_equals_flagembedding(upstream, left, right, cost):
    left, right = by_the_rule(left), by_the_rule(right)
    theirs = upstream.compute_lexical_matching_score(left, right)
    theirs = np.reshape(theirs, (len(left), len(right)))
    # Whether a token is looked up or goes into the dense product makes no difference.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexical, "_DENSE_COST", cost)
        for ours in (
            matching_scores(left, right),
            matching_scores(plain(left), plain(right)),
            matching_scores(LexicalWeights.from_dicts(left), LexicalWeights.from_dicts(right)),
            matching_scores(LexicalWeights.from_dicts(left), right),
            matching_scores(left, LexicalWeights.from_dicts(right).to_csr(13)),
        ):
            assert ours.shape == (len(left), len(right))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_VALUE)


def zipf(generator, count):
    rows = [
        [(4 + int(token), float(weight)) for token, weight in zip(tokens, weights, strict=True)]
        for tokens, weights in zip(
            np.minimum(generator.zipf(1.3, (count, 60)), 5000),
            generator.uniform(0, 0.4, (count, 60)),
            strict=True,
        )
    ]
    return by_the_rule(rows)


@pytest.mark.parametrize("block", [64, 4096, lexical._BLOCK_CELLS])
def test_matching_of_many_texts_equals_flagembedding(upstream, monkeypatch, block):
    # The frequent tokens go into the dense product and the others do not.
    generator = np.random.default_rng(0)
    left, right = zipf(generator, 70), zipf(generator, 90)
    monkeypatch.setattr(lexical, "_BLOCK_CELLS", block)
    ours = matching_scores(left, right)
    theirs = upstream.compute_lexical_matching_score(left, right)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_VALUE)
    assert ours.dtype == np.float32
    assert matching_scores(plain(left), plain(right)).dtype == np.float64


def test_scores_of_two_texts_have_flagembeddings_type(upstream):
    left, right = {"5": np.float32(0.5), "6": np.float32(0.25)}, {"5": np.float32(0.25)}
    for one, two in ((left, right), (left, {}), (plain([left])[0], {"5": 0.5}), ({5: 2}, {5: 3})):
        ours = matching_scores(one, two)
        theirs = upstream.compute_lexical_matching_score(one, two)
        assert type(ours) is type(theirs)
        assert ours == theirs


def test_the_type_of_a_matrix_does_not_depend_on_which_texts_share_a_token(upstream):
    one, other = {"5": np.float32(0.5)}, {"6": np.float32(0.5)}
    found = [upstream.compute_lexical_matching_score([one], [side]).dtype for side in (one, other)]
    assert found == [np.float32, np.int64]
    assert {matching_scores([one], [side]).dtype for side in (one, other)} == {np.dtype(np.float32)}


def test_half_precision_is_added_up_in_single():
    half = {str(key): np.float16(0.1) for key in range(1000)}
    (score,) = matching_scores([half], [half]).ravel()
    assert score == pytest.approx(1000 * float(np.float16(0.1)) ** 2, rel=1e-6)


def test_keys_may_be_anything_that_both_sides_have(upstream):
    left, right = [{"▁what": 0.5, 7: 1.0, "7": 3.0}], [{"▁what": 0.25, 7: 2.0}, {"7": 1.0}]
    ours = matching_scores(left, right)
    assert ours.tolist() == upstream.compute_lexical_matching_score(left, right).tolist()


def test_an_infinite_weight_stays_in_its_own_score():
    left, right = [{"5": np.inf}, {"6": 1.0}], [{"5": 1.0}, {"6": 1.0}]
    assert matching_scores(left, right).tolist() == [[np.inf, 0], [0, 1]]


@pytest.mark.parametrize(
    ("left", "right"), [([], []), ([], [{"5": 1.0}]), ([{"5": 1.0}], []), ([{}], [{}])]
)
def test_matching_of_no_texts(left, right):
    assert matching_scores(left, right).shape == (len(left), len(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [({}, [{}]), ([{}], {}), ("text", [{}]), ([["5"]], [{}]), (None, [{}]), (np.eye(2), [{}])],
)
def test_other_arguments_are_refused_as_by_flagembedding(left, right):
    with pytest.raises(ValueError, match="two dictionaries or as two lists"):
        matching_scores(left, right)


@PROPERTY
@given(st.lists(st.tuples(ROW, ROW), max_size=6))
def test_scores_of_pairs_are_the_diagonal(pairs):
    left, right = (from_rows([pair[side] for pair in pairs]) for side in (0, 1))
    ours = lexical_pair_scores(left, right)
    assert ours.dtype == np.float32
    expected = np.diagonal(matching_scores(left, right))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME_VALUE)


def test_pairs_must_be_as_many_on_both_sides():
    with pytest.raises(ValueError, match="not 1 and 2"):
        lexical_pair_scores(from_rows([[]]), from_rows([[], []]))
