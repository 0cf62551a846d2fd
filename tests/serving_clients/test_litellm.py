"""LiteLLM, by each of its providers that a server of embeddings or a reranker can be."""

from __future__ import annotations

import asyncio

import litellm
import pytest

from tests.serving_clients.servers import Model, Reranker, assert_ranked, assert_same

PROVIDERS = {
    "openai/docs": "/v1",
    "hosted_vllm/docs": "/v1",
    "infinity/docs": "",
    "ollama/docs": "",
    "huggingface/docs": "",
}
"""Model names, whose beginning selects the provider, with the path that it is given."""


@pytest.mark.parametrize("model", PROVIDERS)
def test_a_provider(docs: Model, model: str):
    asked = {
        "model": model,
        "api_base": docs.url + PROVIDERS[model],
        "api_key": "none",
        "input": docs.texts,
    }
    if model.startswith("huggingface/"):
        asked["input_type"] = "embed"  # it asks the Hub what the model is for otherwise
    answer = litellm.embedding(**asked)
    assert_same([one["embedding"] for one in answer.data], docs.outputs["passages"])
    if not model.startswith("huggingface/"):
        answer = asyncio.run(litellm.aembedding(**asked))
        assert_same([one["embedding"] for one in answer.data], docs.outputs["passages"])


def test_a_refused_request_is_the_error_of_its_status(docs: Model):
    with pytest.raises(litellm.BadRequestError, match="1 to 48 components"):
        litellm.embedding(
            model="openai/docs",
            api_base=f"{docs.url}/v1",
            api_key="none",
            input=docs.texts,
            dimensions=49,
            allowed_openai_params=["dimensions"],
        )


@pytest.mark.parametrize("model", ["cohere/ranker", "jina_ai/ranker", "hosted_vllm/ranker",
                                   "huggingface/ranker", "infinity/ranker"])  # fmt: skip
def test_a_provider_of_rerankers(ranker: Reranker, model: str):
    # It takes infinity's documents for strings, and those of all others for objects.
    with_documents = not model.startswith("infinity/")
    asked = {
        "model": model,
        "api_base": ranker.url,
        "api_key": "none",
        "query": ranker.query,
        "documents": ranker.texts,
        "return_documents": with_documents,
    }
    answer = litellm.rerank(**asked)
    found = [(each["index"], each["relevance_score"]) for each in answer.results]
    assert_ranked(found, ranker, None)
    if with_documents:
        texts = [each["document"]["text"] for each in answer.results]
        assert texts == [ranker.texts[row] for row in ranker.order]
    answer = asyncio.run(litellm.arerank(**asked, top_n=3))
    assert_ranked([(each["index"], each["relevance_score"]) for each in answer.results], ranker, 3)


def test_tokens_of_a_request_are_counted(ranker: Reranker):
    for model in ("cohere/ranker", "hosted_vllm/ranker", "jina_ai/ranker"):
        answer = litellm.rerank(
            model=model, api_base=ranker.url, api_key="none", query=ranker.query,
            documents=ranker.texts,
        )  # fmt: skip
        counts = {**answer.meta.get("tokens", {}), **(answer.meta.get("billed_units") or {})}
        assert max(count or 0 for count in counts.values()) > len(ranker.texts), model
