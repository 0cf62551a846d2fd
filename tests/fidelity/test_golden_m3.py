"""BGE-M3 against values that others have published; its weights are on the hub only."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel
from bge_runtime.encoding.tokenization import TextTokenizer
from tests.helpers.bundles import SHARED

CASES = SHARED / "golden" / "xlmr_tokenizer_cases.json"
TOKENIZER = SHARED / "tokenizers" / "xlm-roberta" / "tokenizer.json"

QUERIES = ["What is BGE M3?", "Defination of BM25"]
PASSAGES = [
    (
        "BGE M3 is an embedding model supporting dense retrieval, lexical matching and "
        "multi-vector interaction."
    ),
    (
        "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the "
        "query terms appearing in each document"
    ),
]


@pytest.mark.skipif(
    not (CASES.is_file() and TOKENIZER.is_file()), reason="needs the shared tokenizer and cases"
)
def test_published_tokens():
    tokenizer = TextTokenizer(TOKENIZER)
    cases = json.loads(CASES.read_text("utf-8"))["cases"]
    assert len(cases) >= 20
    found = tokenizer.encode([case["text"] for case in cases], max_length=8192)
    wrong = {
        case["text"]: (ids.tolist(), case["ids"])
        for case, ids in zip(cases, found, strict=True)
        if ids.tolist() != case["ids"]
    }
    assert wrong == {}


@pytest.fixture(scope="module")
def model() -> BGEM3FlagModel:
    return BGEM3FlagModel("BAAI/bge-m3", use_fp16=False)


@pytest.mark.network
def test_published_dense_vectors(model: BGEM3FlagModel):
    # fastembed-rs, tests/text-embeddings.rs at 045d591.
    texts = [
        "Hello, World!",
        "This is an example passage.",
        "fastembed-rs is licensed under Apache-2.0",
        "Some other short text here blah blah blah",
    ]
    sums = model.encode(texts)["dense_vecs"].sum(axis=1)
    expected = [-0.7138151, -0.69116485, -0.7932898, -0.6727733]
    np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-2)
    # In fp16: FlagEmbedding, Tutorials/1_Embedding/1.2.1_BGE_Series.ipynb and 1.2.4_BGE-M3.ipynb
    # at 7ed43d6.
    queries = model.encode(QUERIES, max_length=10)["dense_vecs"]
    first = [[-0.03412, -0.04706, -0.00087], [-0.01035, -0.04483, -0.02434]]
    np.testing.assert_allclose(queries[:, :3], first, rtol=0, atol=1e-3)
    passages = model.encode(PASSAGES, max_length=100)["dense_vecs"]
    scores = [[0.6259035, 0.34749585], [0.349868, 0.6782462]]
    np.testing.assert_allclose(queries @ passages.T, scores, rtol=0, atol=2e-3)


@pytest.mark.network
def test_published_lexical_weights(model: BGEM3FlagModel):
    # In fp16: FlagEmbedding, Tutorials/1_Embedding/1.2.4_BGE-M3.ipynb at 7ed43d6.
    expected = [
        {"What": 0.08362077, "is": 0.081469566, "B": 0.12964639, "GE": 0.25186998,
         "M": 0.17001738, "3": 0.26957875, "?": 0.040755156},
        {"De": 0.050144322, "fin": 0.13689369, "ation": 0.045134712, "of": 0.06342201,
         "BM": 0.25167602, "25": 0.33353207},
    ]  # fmt: skip
    weights = model.encode(QUERIES, return_sparse=True)["lexical_weights"]
    for found, published in zip(model.convert_id_to_token(weights), expected, strict=True):
        assert list(found) == list(published)
        np.testing.assert_allclose(
            list(found.values()), list(published.values()), rtol=0, atol=1e-3
        )
    passages = model.encode(PASSAGES, return_sparse=True)["lexical_weights"]
    scores = model.compute_lexical_matching_score(weights[:1], passages)
    np.testing.assert_allclose(scores, [[0.19554448, 0.00880392]], rtol=0, atol=1e-3)


@pytest.mark.network
def test_published_colbert_vectors(model: BGEM3FlagModel):
    # In fp16: FlagEmbedding, Tutorials/1_Embedding/1.2.1_BGE_Series.ipynb and 1.2.4_BGE-M3.ipynb
    # at 7ed43d6.
    query = model.encode(QUERIES, max_length=10, return_colbert_vecs=True)["colbert_vecs"][0]
    passages = model.encode(PASSAGES, return_colbert_vecs=True)["colbert_vecs"]
    assert (query.shape, passages[0].shape) == ((8, 1024), (30, 1024))
    first = [-0.00868966, -0.04892669, -0.00303635]
    np.testing.assert_allclose(query[0, :3], first, rtol=0, atol=1e-3)
    last = [-0.00804431, 0.03289647, 0.04387238]
    np.testing.assert_allclose(query[-1, -3:], last, rtol=0, atol=1e-3)
    scores = [model.colbert_score(query, passage) for passage in passages]
    np.testing.assert_allclose(scores, [0.77966624, 0.46211779], rtol=0, atol=2e-3)


@pytest.mark.network
def test_published_scores_of_pairs(model: BGEM3FlagModel):
    pairs = [(query, passage) for query in QUERIES for passage in PASSAGES]
    found = model.compute_score(
        pairs, max_passage_length=128, weights_for_different_modes=[0.4, 0.2, 0.4]
    )
    # In fp16: the model card of BAAI/bge-m3.
    expected = {
        "colbert": [0.77964997, 0.46214658, 0.45237947, 0.78985751],
        "sparse": [0.19555664, 0.00879669, 0.0, 0.18029785],
        "dense": [0.62597656, 0.34741211, 0.34985352, 0.67822266],
        "sparse+dense": [0.48250321, 0.2345403, 0.23323567, 0.51224774],
        "colbert+sparse+dense": [0.60136193, 0.3255828, 0.3208932, 0.62329161],
    }
    assert list(found) == list(expected)
    for mode, scores in expected.items():
        np.testing.assert_allclose(found[mode], scores, rtol=0, atol=2e-3, err_msg=mode)
