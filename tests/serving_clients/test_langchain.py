"""langchain-openai, which makes token ids of texts unless it is told not to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import litellm
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from tests.serving_clients.servers import Model, assert_same


@pytest.fixture(autouse=True)
def _openai_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give tiktoken OpenAI's vocabulary, which it downloads otherwise, and LiteLLM brings."""
    package = Path(str(litellm.__file__)).parent
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(package / "litellm_core_utils" / "tokenizers"))


def embeddings_of(model: Model, **settings: object) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        model=model.name, base_url=f"{model.url}/v1", api_key="none", max_retries=0, **settings
    )


def test_texts_are_embedded_as_encode_does(docs: Model):
    embeddings = embeddings_of(docs, check_embedding_ctx_length=False)
    assert_same(embeddings.embed_documents(docs.texts), docs.outputs["passages"])
    assert_same(embeddings.embed_query(docs.texts[0]), docs.outputs["passages"][0])
    found = asyncio.run(embeddings.aembed_documents(docs.texts))
    assert_same(found, docs.outputs["passages"])


def test_more_texts_than_it_sends_at_once(docs: Model):
    embeddings = embeddings_of(docs, check_embedding_ctx_length=False)
    assert_same(embeddings.embed_documents(docs.many), docs.outputs["many"])


def test_a_query_gets_the_instruction_that_it_is_asked_for(docs: Model):
    embeddings = embeddings_of(
        docs, check_embedding_ctx_length=False, model_kwargs={"extra_body": {"input_type": "query"}}
    )
    assert_same(embeddings.embed_query(docs.texts[0]), docs.outputs["queries"][0])


def test_ids_of_openai_tokens_are_refused_and_the_setting_is_named(docs: Model):
    for embed in (embeddings_of(docs).embed_query, lambda text: embed_document(docs, text)):
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            embed(docs.texts[0])


def embed_document(model: Model, text: str) -> list[list[float]]:
    found: list[list[float]] = embeddings_of(model).embed_documents([text])
    return found
