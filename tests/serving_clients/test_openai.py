"""OpenAI's own client."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.helpers.guides import code_of
from tests.serving_clients.servers import Model, assert_same, assert_same_weights, model_at


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_base64_which_the_client_asks_for_and_float_hold_the_vectors_of_encode(docs: Model):
    client = client_of(docs.url)
    for encoding in (openai.omit, "float", "base64"):
        answer = client.embeddings.create(
            model=docs.name, input=docs.texts, encoding_format=encoding
        )
        assert [one.index for one in answer.data] == list(range(len(docs.texts)))
        if encoding != "base64":  # decoded by the client, unless it was asked for
            assert_same([one.embedding for one in answer.data], docs.outputs["passages"])
        assert answer.model == docs.name
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(docs.texts)


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_2048_texts_are_one_request(docs: Model, encoding: str):
    asked = {} if encoding == "base64" else {"encoding_format": encoding}
    answer = client_of(docs.url).embeddings.create(model=docs.name, input=docs.many, **asked)
    assert_same([one.embedding for one in answer.data], docs.outputs["many"])


def test_one_text_is_a_list_of_one(docs: Model):
    answer = client_of(docs.url).embeddings.create(model=docs.name, input=docs.texts[0])
    assert_same([one.embedding for one in answer.data], docs.outputs["passages"][:1])


def test_the_input_type_query_adds_the_instruction(docs: Model):
    for input_type, expected in (("query", "queries"), ("passage", "passages")):
        answer = client_of(docs.url).embeddings.create(
            model=docs.name, input=docs.texts, extra_body={"input_type": input_type}
        )
        assert_same([one.embedding for one in answer.data], docs.outputs[expected])


def test_dimensions_are_cut_before_vectors_are_scaled(docs: Model):
    answer = client_of(docs.url).embeddings.create(model=docs.name, input=docs.texts, dimensions=7)
    assert_same([one.embedding for one in answer.data], docs.outputs["7 dimensions"])


def test_requests_at_once_each_get_their_own_vectors(docs: Model):
    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{docs.url}/v1", api_key="none") as client:
            asked = [client.embeddings.create(model=docs.name, input=text) for text in docs.texts]
            answers = await asyncio.gather(*asked)
        return [answer.data[0].embedding for answer in answers]

    assert_same(asyncio.run(ask()), docs.outputs["passages"])


def test_a_text_that_was_cut_is_told_in_a_header(docs: Model):
    answer = client_of(docs.url).embeddings.with_raw_response.create(
        model=docs.name, input=[docs.too_long, docs.texts[0]]
    )
    assert answer.headers["x-truncated-inputs"] == "1"
    assert_same(answer.parse().data[0].embedding, docs.outputs["too_long"])


def test_what_is_cut_may_be_said_as_cohere_and_nvidia_do(docs: Model):
    create = client_of(docs.url).embeddings.create
    found = {
        side: create(model=docs.name, input=docs.too_long, extra_body={"truncate": side})
        for side in ("END", "START")
    }
    assert_same(found["END"].data[0].embedding, docs.outputs["too_long"])
    assert found["START"].data[0].embedding != found["END"].data[0].embedding
    for refused, said in (("NONE", "512"), ("MIDDLE", "END, START and NONE")):
        with pytest.raises(openai.BadRequestError, match=said):
            create(model=docs.name, input=docs.too_long, extra_body={"truncate": refused})


def test_models_are_listed_and_found_by_name(both: str):
    client = client_of(both)
    assert sorted(model.id for model in client.models.list()) == ["docs", "m3"]
    assert client.models.retrieve("m3").id == "m3"
    with pytest.raises(openai.NotFoundError, match="docs"):
        client.models.retrieve("absent")


def test_a_server_of_two_models_takes_the_one_that_is_named(both: str, reference: dict):
    for name in ("docs", "m3"):
        model = model_at(both, name, reference)
        for url in (both, f"{both}/{name}"):
            answer = client_of(url).embeddings.create(model=name, input=model.texts)
            assert_same([one.embedding for one in answer.data], model.outputs["passages"])
    with pytest.raises(openai.NotFoundError, match=r"docs.*m3"):
        client_of(both).embeddings.create(model="absent", input="one")


def test_m3_answers_with_all_three_outputs(m3: Model):
    answer = client_of(m3.url).embeddings.create(
        model=m3.name,
        input=m3.texts,
        encoding_format="float",
        extra_body={"return_sparse": True, "return_colbert_vecs": True},
    )
    assert_same([one.embedding for one in answer.data], m3.outputs["passages"])
    for one, weights, vectors in zip(
        answer.data, m3.outputs["lexical_weights"], m3.outputs["colbert_vecs"], strict=True
    ):
        sparse = one.sparse_embedding
        assert_same_weights(sparse["indices"], sparse["values"], weights)
        assert_same(one.colbert_vecs, vectors)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"input": []}, openai.BadRequestError, "input"),
        ({"input": "one", "dimensions": 49}, openai.BadRequestError, "48"),
        ({"input": ["one"] * 2049}, openai.APIStatusError, "2,048"),
        ({"input": [[101, 102]]}, openai.BadRequestError, "token"),
    ],
)
def test_a_refused_request_is_the_error_of_the_client(docs: Model, asked, error, said: str):
    with pytest.raises(error, match=said) as refused:
        client_of(docs.url).embeddings.create(model=docs.name, **asked)
    assert refused.value.status_code == (413 if len(asked["input"]) > 2048 else 400)
    assert refused.value.type


def test_a_key_is_needed_where_keys_are_set(guarded: tuple[Model, str]):
    model, key = guarded
    answer = client_of(model.url, key).embeddings.create(model=model.name, input=model.texts)
    assert_same([one.embedding for one in answer.data], model.outputs["passages"])
    with pytest.raises(openai.AuthenticationError):
        client_of(model.url, "another").embeddings.create(model=model.name, input="one")


def test_the_code_of_the_guide_runs(docs: Model, capsys: pytest.CaptureFixture[str]):
    code = code_of("guides/serving/index.md", "Start")
    for old, new in (("http://localhost:8080", docs.url), ("bge-small-en-v1.5", docs.name)):
        assert code.count(old) == 1
        code = code.replace(old, new)
    scope: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), scope)
    scope["client"].close()
    assert capsys.readouterr().out == f"1 {docs.name}\n"
