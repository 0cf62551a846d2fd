"""LlamaIndex: its client of OpenAI's routes, and its client of text-embeddings-inference."""

from __future__ import annotations

import asyncio

from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from tests.serving_clients.servers import Model, assert_same


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
