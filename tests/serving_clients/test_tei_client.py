"""tei-client, the client of text-embeddings-inference on PyPI."""

from __future__ import annotations

import asyncio

from tei_client import HttpClient, ModelType

from tests.serving_clients.servers import Model, assert_same


def test_info_is_what_the_client_validates(docs: Model, m3: Model):
    for model, length in ((docs, 512), (m3, 1024)):
        client = HttpClient(model.url)
        assert client.health()
        info = client.info()
        assert info.server_model_type == ModelType.Embedding
        assert info.server_model_metadata.pooling == "cls"
        assert info.max_input_length == length
        assert info.max_client_batch_size == 2048


def test_texts_are_embedded_as_encode_does(docs: Model):
    client = HttpClient(docs.url)
    assert_same(client.embed(docs.texts), docs.outputs["passages"])
    assert_same(client.embed(docs.texts[0]), docs.outputs["passages"][:1])
    assert_same(client.embed(docs.texts, prompt_name="query"), docs.outputs["queries"])
    assert_same(asyncio.run(client.async_embed(docs.texts)), docs.outputs["passages"])


def test_prompts_are_listed_in_the_error_that_the_client_reads(docs: Model):
    assert {"query", "passage"} <= set(HttpClient(docs.url).prompt_names())


def test_embed_all_gives_m3s_colbert_vectors(m3: Model):
    found = HttpClient(m3.url).embed_all(m3.texts)
    for vectors, expected in zip(found, m3.outputs["colbert_vecs"], strict=True):
        assert_same(vectors, expected)


def test_tokens_have_the_places_of_their_characters_and_are_decoded(docs: Model):
    client = HttpClient(docs.url)
    for text, result in zip(docs.texts, client.tokenize(docs.texts), strict=True):
        first, *inner, last = result.tokens
        assert first.special
        assert last.special
        assert first.start is first.stop is None
        for token in inner:
            assert not token.special
            assert token.start is not None
            assert token.text == text[token.start : token.stop]
    assert client.decode(client.tokenize("a b c")[0].get_ids()) == ["a b c"]
