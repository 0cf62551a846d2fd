"""``BGEM3FlagModel`` against FlagEmbedding's own, on the same weights."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagAutoModel, FlagModel
from bge_runtime.engines import openvino
from bge_runtime.errors import BundleError, ExportError, PoolingError
from tests.helpers.bundles import export, write_tiny_m3
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu

ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
TOLERANCE = 1e-5
PAIRS = [(query, passage) for query in TEXTS[2:6] for passage in TEXTS[3:8]]


@pytest.fixture(scope="module")
def m3(tiny_m3_bundle):
    """Ours, in fp32 on ONNX Runtime."""
    model = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    assert_fp32_on_cpu(model)
    assert model.engine.info.variant == "cpu-fp32"
    return model


@pytest.fixture(scope="module")
def theirs(upstream, tiny_m3_checkpoint):
    """FlagEmbedding's, in fp32 on the CPU."""
    return upstream.BGEM3FlagModel(
        str(tiny_m3_checkpoint), use_fp16=False, devices="cpu", batch_size=4
    )


def assert_alike(ours, theirs, *, tolerance=TOLERANCE):
    """Compare types, keys, their order, dtypes, shapes and values."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        if isinstance(ours, defaultdict):
            assert ours.default_factory is theirs.default_factory
        for key, value in ours.items():
            assert_alike(value, theirs[key], tolerance=tolerance)
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other, tolerance=tolerance)
    elif ours is not None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "asked", [asked for asked in itertools.product([True, False], repeat=3) if any(asked)]
)
def test_results_are_flag_embeddings(m3, theirs, asked):
    options = dict(zip(ALL, asked, strict=True))
    assert_alike(m3.encode(TEXTS, **options), theirs.encode(TEXTS, **options))


def test_heads_are_computed_only_where_one_is_asked_for(tiny_m3_bundle, tmp_path):
    """Counted in ONNX Runtime's own profile of each call."""

    def products(path, **options):
        model = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
        engine, bundle = model.engine, model.bundle
        profiled = engine.load().SessionOptions()
        profiled.enable_profiling = True
        profiled.profile_file_prefix = str(tmp_path / path)
        (variant,) = (v for v in bundle.manifest.variants if v.name == engine.info.variant)
        graph = bundle.path / bundle.graph(variant.graph).file
        session = engine.load().InferenceSession(str(graph), profiled)
        engine._session.session = session
        found = model.encode(TEXTS[4], **options)
        events = json.loads(Path(session.end_profiling()).read_text())
        operators = Counter(event.get("args", {}).get("op_name") for event in events)
        return found, operators["MatMul"] + operators["FusedMatMul"]

    every, most = products("all", **ALL)
    dense, fewest = products("dense", return_dense=True)
    # The last layer's for all tokens (queries, output, feed-forward) and the heads' own.
    assert most - fewest >= 5
    np.testing.assert_array_equal(dense["dense_vecs"], every["dense_vecs"])
    sparse, most = products("sparse", return_dense=False, return_sparse=True)
    assert most > fewest
    assert sparse["lexical_weights"] == every["lexical_weights"]


def test_a_tokens_weights_are_a_part_of_the_vocabulary(m3):
    """What is compared is worth comparing: between 30 and 70 % of the tokens are positive."""
    weights = m3.encode(TEXTS, return_sparse=True)["lexical_weights"]
    tokens = [set(ids.tolist()) for ids in m3.tokenizer.encode(TEXTS, max_length=512)]
    share = sum(map(len, weights)) / sum(map(len, tokens))
    assert 0.3 < share < 0.7


def test_a_single_text_gives_single_results(m3, theirs):
    assert_alike(m3.encode(TEXTS[4], **ALL), theirs.encode(TEXTS[4], **ALL))
    assert_alike(m3.encode_queries(TEXTS[4]), theirs.encode_queries(TEXTS[4]))


@pytest.mark.parametrize(
    "options",
    [
        {"normalize_embeddings": False},
        {"truncate_dim": 7},
        {"truncate_dim": 7, "normalize_embeddings": False},
        {
            "query_instruction_for_retrieval": "find this: ",
            "query_instruction_format": "{}\\n{}",
            "passage_instruction_for_retrieval": "in: ",
        },
        {"query_max_length": 9, "passage_max_length": 12, "return_sparse": True},
        {"return_dense": False, "return_colbert_vecs": True},
    ],
)
def test_options_mean_what_they_mean_there(tiny_m3_bundle, tiny_m3_checkpoint, upstream, options):
    ours = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False, **options)
    theirs = upstream.BGEM3FlagModel(
        str(tiny_m3_checkpoint), use_fp16=False, devices="cpu", **options
    )
    for call in ("encode", "encode_queries", "encode_corpus"):
        assert_alike(getattr(ours, call)(TEXTS), getattr(theirs, call)(TEXTS))


@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_other_pooling(tiny_m3_checkpoint, upstream, tmp_path, pooling):
    options = {"pooling": pooling, "model_class": "encoder-only-m3"}
    bundle = export(tiny_m3_checkpoint, tmp_path / "bundle", **options)
    ours = BGEM3FlagModel(str(bundle), use_fp16=False, pooling_method=pooling)
    theirs = upstream.BGEM3FlagModel(
        str(tiny_m3_checkpoint), use_fp16=False, devices="cpu", pooling_method=pooling
    )
    assert_alike(ours.encode(TEXTS, **ALL), theirs.encode(TEXTS, **ALL))
    with pytest.raises(PoolingError, match="requested pooling_method='cls'"):
        BGEM3FlagModel(str(bundle), pooling_method="cls")


def test_a_narrower_colbert_head(upstream, tmp_path):
    checkpoint = write_tiny_m3(tmp_path / "checkpoint", layers=1, colbert_dim=11)
    bundle = export(checkpoint, tmp_path / "bundle", model_class="encoder-only-m3")
    ours = BGEM3FlagModel(str(bundle), use_fp16=False, colbert_dim=11)
    theirs = upstream.BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu", colbert_dim=11)
    assert_alike(ours.encode(TEXTS, **ALL), theirs.encode(TEXTS, **ALL))
    with pytest.raises(ValueError, match="gives 11 components"):
        BGEM3FlagModel(str(bundle), colbert_dim=48)


def test_texts_beyond_512_tokens(m3, theirs):
    texts = [" ".join(f"word{n} and" for n in range(400)), "short", "a longer one " * 30]
    ours = m3.encode(texts, max_length=1024, **ALL)
    assert len(ours["colbert_vecs"][0]) == 1023
    assert_alike(ours, theirs.encode(texts, max_length=1024, **ALL))


def test_an_empty_list_gives_empty_results(m3):
    result = m3.encode([], **ALL)
    assert result["dense_vecs"].shape == (0, 48)
    assert result["lexical_weights"] == result["colbert_vecs"] == []
    assert m3.compute_score([]) == []


def test_weights_as_a_matrix(m3):
    pytest.importorskip("scipy")
    result = m3.encode(TEXTS, **ALL)["lexical_weights"]
    matrix = m3.encode(TEXTS, sparse_format="csr", **ALL)["lexical_weights"]
    assert matrix.shape == (len(TEXTS), 9000)
    for row, weights in enumerate(result):
        one = matrix[[row]].tocoo()
        assert dict(zip(map(str, one.coords[1].tolist()), one.data, strict=True)) == dict(weights)


@pytest.mark.parametrize("weights", [None, [0.4, 0.2, 0.4], [1, 0, 0]])
def test_scores_of_pairs(m3, theirs, weights):
    expected = theirs.compute_score(PAIRS, batch_size=4, weights_for_different_modes=weights)
    ours = m3.compute_score(
        PAIRS, batch_size=4, weights_for_different_modes=weights, clip_padded_colbert=True
    )
    assert_alike(ours, expected)
    one = m3.compute_score(list(PAIRS[3]), weights_for_different_modes=weights)
    assert_alike(one, theirs.compute_score(list(PAIRS[3]), weights_for_different_modes=weights))


def test_scores_of_pairs_do_not_depend_on_their_batch(m3):
    whole = m3.compute_score(PAIRS)
    for index in (0, 7, len(PAIRS) - 1):
        alone = m3.compute_score(PAIRS[index])
        for mode, score in alone.items():
            assert whole[mode][index] == pytest.approx(score, abs=TOLERANCE)


def test_the_other_scores(m3, theirs):
    ours, other = m3.encode(TEXTS, **ALL), theirs.encode(TEXTS, **ALL)
    weights = ours["lexical_weights"], other["lexical_weights"]
    assert_alike(m3.convert_id_to_token(weights[0]), theirs.convert_id_to_token(weights[1]))
    assert_alike(m3.convert_id_to_token(weights[0][3]), theirs.convert_id_to_token(weights[1][3]))
    for pick in (slice(None), 3):
        score = m3.compute_lexical_matching_score(weights[0][pick], weights[0][pick])
        expected = theirs.compute_lexical_matching_score(weights[1][pick], weights[1][pick])
        # A matrix of theirs is float64 where two texts share no token, float32 else.
        assert np.shape(score) == np.shape(expected)
        np.testing.assert_allclose(score, expected, rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="one side is defaultdict"):
        m3.compute_lexical_matching_score(weights[0][3], weights[0])
    query, passage = ours["colbert_vecs"][3], ours["colbert_vecs"][4]
    expected = theirs.colbert_score(other["colbert_vecs"][3], other["colbert_vecs"][4])
    score = m3.colbert_score(query, passage)
    assert isinstance(score, np.float32)
    assert score == pytest.approx(expected.item(), abs=TOLERANCE)


def test_flag_auto_model_opens_it(tiny_m3_bundle, m3):
    opened = FlagAutoModel.from_finetuned(
        str(tiny_m3_bundle), use_fp16=False, return_sparse=True, colbert_dim=-1
    )
    assert type(opened) is BGEM3FlagModel
    assert_alike(opened.encode(TEXTS), m3.encode(TEXTS, return_sparse=True))


def test_flag_model_gives_its_dense_vectors(tiny_m3_bundle, m3):
    dense = FlagModel(str(tiny_m3_bundle), use_fp16=False).encode(TEXTS)
    assert_alike(dense, m3.encode(TEXTS)["dense_vecs"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_gives_the_same_and_widens_when_asked(tiny_m3_bundle, m3, precision):
    if precision == "bf16" and "BF16" not in openvino.cpu_capabilities():
        pytest.skip("this processor does not compute in bf16")
    opened = BGEM3FlagModel(str(tiny_m3_bundle), engine="openvino", precision=precision)
    assert opened.engine.info.precision == precision
    expected = m3.encode(TEXTS, **ALL)
    limit = TOLERANCE if precision == "fp32" else 0.05
    narrow = opened.encode(TEXTS)["dense_vecs"]
    np.testing.assert_allclose(narrow, expected["dense_vecs"], atol=limit)
    with ThreadPoolExecutor(4) as pool:  # all of them find it too narrow at once
        calls = [pool.submit(opened.encode, TEXTS, **ALL) for _ in range(4)]
    for call in calls:
        result = call.result()
        np.testing.assert_allclose(result["dense_vecs"], expected["dense_vecs"], atol=limit)
        for ours, theirs in zip(result["colbert_vecs"], expected["colbert_vecs"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2 * limit)
        for ours, theirs in zip(
            result["lexical_weights"], expected["lexical_weights"], strict=True
        ):
            for key in {*ours, *theirs}:
                assert abs(ours[key] - theirs[key]) <= (TOLERANCE if precision == "fp32" else 0.01)


def test_it_survives_pickle_and_two_devices_agree(tiny_m3_bundle, m3):
    copy = pickle.loads(pickle.dumps(m3))
    assert_alike(copy.encode(TEXTS, **ALL), m3.encode(TEXTS, **ALL), tolerance=0)
    both = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False, devices=["cpu", "cpu"])
    assert_alike(both.encode(TEXTS * 9, **ALL), m3.encode(TEXTS * 9, **ALL))


# -- What is refused ----------------------------------------------------------------------


def test_nothing_asked_for_is_an_error(m3):
    with pytest.raises(ValueError, match="nothing is asked for"):
        m3.encode(TEXTS, return_dense=False)


def test_an_unknown_format_is_an_error(m3):
    with pytest.raises(ValueError, match="'dict' or 'csr', but is 'coo'"):
        m3.encode(TEXTS, return_sparse=True, sparse_format="coo")


def test_pairs_come_from_any_ordered_iterable(m3):
    expected = m3.compute_score([("a", "b"), ("c", "d")])
    table = np.array([["a", "b"], ["c", "d"]])
    for pairs in (table, list(table), table.astype(object), zip("ac", "bd", strict=True)):
        assert m3.compute_score(pairs) == expected
    assert m3.compute_score(table[0]) == m3.compute_score(("a", "b"))


def test_a_text_that_is_no_unicode_is_named_by_its_pair(m3):
    pairs = [("the same", f"passage {number}") for number in range(7)]
    pairs[5] = ("the same", "a\udc80")
    with pytest.raises(ValueError, match=r"sentence_pairs\[5\]\[1\] is not valid Unicode"):
        m3.compute_score(pairs, batch_size=2)


def test_scores_of_one_device(m3):
    assert m3.compute_score_single_device(PAIRS, device="cpu:0") == m3.compute_score(PAIRS)
    with pytest.raises(ValueError, match="was opened on cpu, not on 'cuda:0'"):
        m3.compute_score_single_device(PAIRS, device=0)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([("a",)], ValueError, r"sentence_pairs\[0\] must be a pair"),
        ([("a", "b"), ("a", "b", "c")], ValueError, r"sentence_pairs\[1\] must be a pair"),
        (["a", "b", "c"], ValueError, r"sentence_pairs\[0\] must be a pair"),
        (iter(["query", "passage"]), ValueError, r"\[0\] must be a pair.* is 'query'"),
        ([("a", "b"), "cd"], ValueError, r"sentence_pairs\[1\] must be a pair"),
        ([("a", None)], TypeError, "must hold strings, not None$"),
        ("ab", TypeError, "must be a pair of strings or a list of pairs, not str"),
        (None, TypeError, "not None$"),
    ],
)
def test_what_is_no_pair_is_an_error(m3, pairs, error, message):
    with pytest.raises(error, match=message):
        m3.compute_score(pairs)


@pytest.mark.parametrize(
    "weights", [[1, 2], [1, 1, 1, 1], [1, -1, 0], ["a", 1, 1], [float("nan"), 1, 1], 3]
)
def test_weights_that_cannot_be_used_are_an_error(m3, weights):
    with pytest.raises(ValueError, match="weights_for_different_modes must be three numbers"):
        m3.compute_score(PAIRS, weights_for_different_modes=weights)


def test_a_bundle_without_heads_is_an_error(tiny_bundle):
    with pytest.raises(BundleError, match="has no heads for lexical weights"):
        BGEM3FlagModel(str(tiny_bundle))


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
@pytest.mark.parametrize("damage", ["gone", "garbage", "wrong width"])
def test_a_head_that_cannot_be_used_is_refused_at_export(tmp_path, name, damage):
    import torch

    checkpoint = write_tiny_m3(tmp_path / "checkpoint")
    path = checkpoint / name
    if damage == "gone":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"no tensors")
    else:
        torch.save({"weight": torch.zeros(1, 47), "bias": torch.zeros(1)}, path)
    with pytest.raises(ExportError, match=name.replace(".", r"\.")):
        export(checkpoint, tmp_path / "bundle", model_class="encoder-only-m3")
    assert not (tmp_path / "bundle").exists()


def test_its_dense_vectors_can_be_exported_without_heads(tmp_path):
    checkpoint = write_tiny_m3(tmp_path / "checkpoint")
    (checkpoint / "sparse_linear.pt").unlink()
    bundle = export(checkpoint, tmp_path / "bundle", model_class="encoder-only-base")
    assert FlagModel(str(bundle)).encode(["one"]).shape == (1, 48)
