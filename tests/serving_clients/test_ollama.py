"""Ollama's own client."""

from __future__ import annotations

import asyncio

import ollama
import pytest

from tests.serving_clients.servers import Model, assert_same


def test_embed_and_the_older_embeddings(docs: Model):
    client = ollama.Client(docs.url)
    answer = client.embed(docs.name, docs.texts)
    assert_same(answer.embeddings, docs.outputs["passages"])
    assert answer.model == docs.name
    assert answer.total_duration > 0
    assert answer.prompt_eval_count > len(docs.texts)
    answer = client.embed(
        docs.name, docs.texts[0], keep_alive="5m", options={"num_ctx": 512}, truncate=True
    )
    assert_same(answer.embeddings, docs.outputs["passages"][:1])
    answer = client.embed(docs.name, docs.texts, dimensions=7)
    assert_same(answer.embeddings, docs.outputs["7 dimensions"])
    one = client.embeddings(docs.name, docs.texts[0], keep_alive=-1)
    assert_same(one.embedding, docs.outputs["passages"][0])


def test_the_asynchronous_client(docs: Model):
    answer = asyncio.run(ollama.AsyncClient(docs.url).embed(docs.name, docs.texts))
    assert_same(answer.embeddings, docs.outputs["passages"])


def test_models_are_listed(both: str):
    listed = ollama.Client(both).list().models
    # Open WebUI and others ask for a model with the tag that Ollama adds.
    assert sorted(str(model.model).removesuffix(":latest") for model in listed) == ["docs", "m3"]


def test_a_name_may_have_ollamas_tag(both: str, m3: Model):
    answer = ollama.Client(both).embed("m3:latest", m3.texts)
    assert_same(answer.embeddings, m3.outputs["passages"])


def test_a_refused_request_says_why(docs: Model):
    client = ollama.Client(docs.url)
    with pytest.raises(ollama.ResponseError, match="512") as refused:
        client.embed(docs.name, docs.too_long, truncate=False)
    assert refused.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="docs") as refused:
        client.embed("absent", "one")
    assert refused.value.status_code == 404
