"""Vector stores take what we make for them, and find by it what our scores say."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bge_runtime.encoding.postprocess import normalize
from bge_runtime.m3.colbert import colbert_scores
from bge_runtime.m3.lexical import LexicalWeights, matching_scores
from bge_runtime.stores import (
    to_chroma_sparse,
    to_milvus_sparse,
    to_qdrant_multivector,
    to_qdrant_sparse,
)

STORED = 1e-6
"""Stores keep single precision; scores are of order 1."""


def lexical_weights(count, *, seed=0):
    """Dictionaries as ``encode`` gives them: unsorted string keys, NumPy scalars."""
    generator = np.random.default_rng(seed)
    indptr = np.arange(count + 1) * 6
    ids = np.concatenate([generator.permutation(12)[:6] * 20_000 + 4 for _ in range(count)])
    weights = generator.uniform(0.05, 0.4, count * 6).astype(np.float32)
    return LexicalWeights(indptr, ids.astype(np.int32), weights).to_dicts()


def colbert_vecs(*lengths):
    generator = np.random.default_rng(1)
    return [normalize(generator.normal(size=(n, 8)).astype(np.float32)) for n in lengths]


@pytest.fixture
def qdrant():
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    yield client
    client.close()


def test_qdrant_finds_by_lexical_weights(qdrant):
    from qdrant_client import models

    corpus, query = lexical_weights(5), lexical_weights(1, seed=1)[0]
    qdrant.create_collection(
        "m3", vectors_config={}, sparse_vectors_config={"sparse": models.SparseVectorParams()}
    )
    sparse = to_qdrant_sparse(corpus)
    points = [models.PointStruct(id=i, vector={"sparse": row}) for i, row in enumerate(sparse)]
    qdrant.upsert("m3", points)
    found = qdrant.query_points("m3", query=to_qdrant_sparse(query), using="sparse").points
    expected = matching_scores([query], corpus)[0]
    assert [point.id for point in found] == np.argsort(-expected).tolist()
    np.testing.assert_allclose([point.score for point in found], np.sort(expected)[::-1], rtol=1e-6)


def test_qdrant_finds_by_colbert_vectors(qdrant):
    from qdrant_client import models

    passages, (query,) = colbert_vecs(3, 1, 6, 4), colbert_vecs(5)
    config = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    qdrant.create_collection(
        "m3",
        vectors_config={
            "colbert": models.VectorParams(
                size=8, distance=models.Distance.DOT, multivector_config=config
            )
        },
    )
    rows = to_qdrant_multivector(passages)
    points = [models.PointStruct(id=i, vector={"colbert": row}) for i, row in enumerate(rows)]
    qdrant.upsert("m3", points)
    found = qdrant.query_points("m3", query=to_qdrant_multivector(query), using="colbert").points
    expected = colbert_scores(query, passages) * len(query)
    assert [point.id for point in found] == np.argsort(-expected).tolist()
    np.testing.assert_allclose(
        [point.score for point in found], np.sort(expected)[::-1], rtol=0, atol=10 * STORED
    )


def test_qdrant_takes_a_text_without_weights(qdrant):
    from qdrant_client import models

    qdrant.create_collection(
        "m3", vectors_config={}, sparse_vectors_config={"sparse": models.SparseVectorParams()}
    )
    qdrant.upsert("m3", [models.PointStruct(id=1, vector={"sparse": to_qdrant_sparse({})})])
    assert qdrant.count("m3").count == 1


@pytest.fixture
def milvus(tmp_path):
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("sparse", pymilvus.DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("m3", schema=schema, index_params=index)
    yield client
    client.close()


def test_milvus_finds_by_lexical_weights(milvus):
    corpus, query = lexical_weights(5), lexical_weights(1, seed=1)[0]
    rows = to_milvus_sparse(corpus)
    milvus.insert("m3", [{"id": index, "sparse": row} for index, row in enumerate(rows)])
    (found,) = milvus.search(
        "m3", data=[to_milvus_sparse(query)], anns_field="sparse", output_fields=["sparse"]
    )
    expected = matching_scores([query], corpus)[0]
    assert [hit["id"] for hit in found] == np.argsort(-expected).tolist()
    np.testing.assert_allclose([hit["distance"] for hit in found], np.sort(expected)[::-1], 1e-6)
    assert found[0]["entity"]["sparse"] == rows[found[0]["id"]]


def test_milvus_takes_rows_of_the_matrix(milvus):
    corpus = lexical_weights(3)
    matrix = LexicalWeights.from_dicts(corpus).to_csr(250002)
    milvus.insert("m3", [{"id": index, "sparse": matrix[[index]]} for index in range(3)])
    found = milvus.get("m3", [0, 1, 2], output_fields=["sparse"])
    assert [row["sparse"] for row in found] == to_milvus_sparse(corpus)


def test_chroma_takes_lexical_weights():
    # Chroma indexes sparse vectors in its cloud only; its client checks them before.
    chromadb = pytest.importorskip("chromadb")
    from chromadb.api.types import deserialize_metadata, serialize_metadata, validate_metadata
    from chromadb.api.types import validate_sparse_vectors as validate

    rows = validate(to_chroma_sparse(lexical_weights(4)))
    metadata = validate_metadata({"sparse": rows[0]})
    assert deserialize_metadata(serialize_metadata(metadata)) == metadata
    assert type(to_chroma_sparse({})) is chromadb.SparseVector
    for row, expected in zip(rows, lexical_weights(4), strict=True):
        assert row.indices == sorted(map(int, expected))
        assert {
            str(key): np.float32(w) for key, w in zip(row.indices, row.values, strict=True)
        } == (expected)


def test_rows_are_sorted_plain_numbers_in_either_form():
    dicts = [*lexical_weights(3), {}]
    rows = to_milvus_sparse(dicts)
    assert rows == to_milvus_sparse(LexicalWeights.from_dicts(dicts))
    assert rows[1] == to_milvus_sparse(dicts[1])
    for row in rows:
        assert list(row) == sorted(row)
        assert {type(key) for key in row} <= {int}
        assert {type(value) for value in row.values()} <= {float}
    assert to_milvus_sparse([]) == []


def test_multivectors_are_plain_numbers():
    one, other = colbert_vecs(2, 3)
    assert to_qdrant_multivector([one, other]) == [one.tolist(), other.tolist()]
    assert to_qdrant_multivector(one) == one.tolist()


@pytest.mark.parametrize(
    ("convert", "client"), [(to_qdrant_sparse, "qdrant-client"), (to_chroma_sparse, "chromadb")]
)
def test_a_missing_client_is_named(monkeypatch, convert, client):
    for module in ("qdrant_client", "qdrant_client.models", "chromadb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {client}"):
        convert({"5": 0.5})
