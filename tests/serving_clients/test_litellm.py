"""LiteLLM, by each of its providers that a server of embeddings can be."""

from __future__ import annotations

import asyncio

import litellm
import pytest

from tests.serving_clients.servers import Model, assert_same

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
