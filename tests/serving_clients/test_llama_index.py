"""LlamaIndex: its client of OpenAI's routes, and its clients of text-embeddings-inference."""

from __future__ import annotations

import asyncio

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference as Rerank

from tests.serving_clients.servers import Model, Reranker, assert_ranked, assert_same


def test_openai_like(docs: Model):
    embedding = OpenAILikeEmbedding(model_name=docs.name, api_base=f"{docs.url}/v1", api_key="none")
    assert_same(embedding.get_text_embedding_batch(docs.texts), docs.outputs["passages"])
    assert_same(embedding.get_query_embedding(docs.texts[0]), docs.outputs["passages"][0])


def test_text_embeddings_inference(docs: Model):
    embedding = TextEmbeddingsInference(
        model_name="BAAI/bge-small-en-v1.5",  # it puts the instruction before queries itself
        base_url=docs.url,
        query_instruction=docs.instruction.strip(),
        auth_token="none",
    )
    assert_same(embedding.get_text_embedding_batch(docs.texts), docs.outputs["passages"])
    assert_same(embedding.get_query_embedding(docs.texts[0]), docs.outputs["queries"][0])
    found = asyncio.run(embedding.aget_text_embedding_batch(docs.texts))
    assert_same(found, docs.outputs["passages"])


def test_text_embeddings_inference_below_a_base_path(both: str, docs: Model):
    embedding = TextEmbeddingsInference(model_name="docs", base_url=f"{both}/docs")
    assert_same(embedding.get_text_embedding_batch(docs.texts), docs.outputs["passages"])


def test_nodes_are_sorted(ranker: Reranker):
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(row)))
        for row, text in enumerate(ranker.texts)
    ]
    processor = Rerank(base_url=ranker.url, top_n=4)
    found = processor.postprocess_nodes(nodes, query_str=ranker.query)
    assert_ranked([(int(each.node.node_id), each.score) for each in found], ranker, 4)
