"""huggingface_hub's InferenceClient, which posts to the bare address."""

from __future__ import annotations

import asyncio

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.serving_clients.servers import Model, assert_same


def test_texts_are_embedded_as_encode_does(docs: Model):
    for client in (InferenceClient(docs.url), InferenceClient(base_url=docs.url, api_key="none")):
        assert_same(client.feature_extraction(docs.texts), docs.outputs["passages"])
        one = client.feature_extraction(docs.texts[0])
        assert_same(one, docs.outputs["passages"][:1])


def test_its_settings_are_those_of_the_server(docs: Model):
    client = InferenceClient(docs.url)
    found = client.feature_extraction(docs.texts, normalize=False)
    assert_same(found, docs.outputs["unnormalized"])
    found = client.feature_extraction(docs.texts, dimensions=7)
    assert_same(found, docs.outputs["7 dimensions"])
    found = client.feature_extraction(docs.texts, prompt_name="query")
    assert_same(found, docs.outputs["queries"])
    found = client.feature_extraction(docs.too_long, truncate=True, truncation_direction="right")
    assert_same(found[0], docs.outputs["too_long"])


def test_a_text_is_cut_on_the_left_if_asked(docs: Model):
    client = InferenceClient(docs.url)
    end = f"{docs.too_long} and an end that only the cut on the left keeps"
    left = client.feature_extraction(end, truncate=True, truncation_direction="left")
    right = client.feature_extraction(end, truncate=True, truncation_direction="right")
    assert_same(right[0], docs.outputs["too_long"])
    assert abs(left - right).max() > 0.01


def test_the_asynchronous_client(docs: Model):
    async def ask() -> object:
        async with AsyncInferenceClient(docs.url) as client:
            return await client.feature_extraction(docs.texts)

    assert_same(asyncio.run(ask()), docs.outputs["passages"])


def test_a_base_path_is_an_address(both: str, docs: Model, m3: Model):
    for model in (docs, m3):
        found = InferenceClient(f"{both}/{model.name}").feature_extraction(model.texts)
        assert_same(found, model.outputs["passages"])


def test_a_refused_request_says_why(docs: Model):
    client = InferenceClient(docs.url)
    with pytest.raises(HfHubHTTPError) as refused:
        client.feature_extraction(docs.too_long, truncate=False)
    answer = refused.value.response
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "Validation"
    assert "512" in answer.json()["error"]
