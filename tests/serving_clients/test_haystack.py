"""Haystack's embedders for text-embeddings-inference, dense and sparse, and its ranker."""

from __future__ import annotations

import asyncio

import pytest
from haystack import Document
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
    HuggingFaceTEISparseDocumentEmbedder,
    HuggingFaceTEISparseTextEmbedder,
)
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.huggingface_api.ranker import TruncationDirection

from tests.serving_clients.servers import (
    Model,
    Reranker,
    assert_ranked,
    assert_same,
    assert_same_weights,
)

TEI = "text_embeddings_inference"
RIGHT = TruncationDirection.RIGHT


@pytest.mark.parametrize("normalize", [True, False])  # False is its default
def test_documents_and_a_query(docs: Model, normalize: bool):
    expected = docs.outputs["passages" if normalize else "unnormalized"]
    server = {"api_type": TEI, "api_params": {"url": docs.url}, "normalize": normalize}
    documents = HuggingFaceAPIDocumentEmbedder(**server, progress_bar=False).run(
        [Document(content=text) for text in docs.texts]
    )["documents"]
    assert_same([document.embedding for document in documents], expected)
    query = HuggingFaceAPITextEmbedder(**server).run(docs.texts[0])
    assert_same(query["embedding"], expected[0])


def test_m3s_lexical_weights_of_documents_and_a_query(m3: Model):
    documents = HuggingFaceTEISparseDocumentEmbedder(api_base_url=m3.url, progress_bar=False).run(
        [Document(content=text) for text in m3.texts]
    )["documents"]
    query = HuggingFaceTEISparseTextEmbedder(api_base_url=m3.url).run(m3.texts[0])
    found = [*(document.sparse_embedding for document in documents), query["sparse_embedding"]]
    weights = m3.outputs["lexical_weights"]
    for sparse, expected in zip(found, [*weights, weights[0]], strict=True):
        assert_same_weights(sparse.indices, sparse.values, expected)


def test_the_ranker_sorts_documents(ranker: Reranker):
    documents = [Document(id=str(row), content=text) for row, text in enumerate(ranker.texts)]
    component = HuggingFaceTEIRanker(url=ranker.url, top_k=5)
    found = component.run(query=ranker.query, documents=documents)["documents"]
    assert_ranked([(int(each.id), each.score) for each in found], ranker, 5)
    raw = HuggingFaceTEIRanker(url=ranker.url, raw_scores=True, top_k=1)
    (best,) = raw.run(query=ranker.query, documents=documents)["documents"]
    assert best.score == pytest.approx(max(ranker.logits), abs=1e-4)
    asked = {"query": ranker.query, "documents": documents}
    found = asyncio.run(component.run_async(**asked, truncation_direction=RIGHT))["documents"]
    assert_ranked([(int(each.id), each.score) for each in found], ranker, 5)


def test_an_embedder_is_no_ranker(docs: Model):
    component = HuggingFaceTEIRanker(url=docs.url)
    with pytest.raises(RuntimeError, match="docs is an embedder"):
        component.run(query="a", documents=[Document(content="b")])
