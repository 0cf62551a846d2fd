"""Requests of programs in other languages, and of those that need a server of their own to run.

The bodies and headers are what their code sends, and answers are read as it reads them (Milvus,
Qdrant, RAGFlow, Dify's plugins and Weaviate, read in November 2026).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.serving_clients.servers import Model, assert_same, assert_same_weights

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Recorded:
    """A request for the vectors of texts.

    Attributes:
        path: Its path below the address of a model.
        body: The body. ``TEXTS``, ``TEXT`` and ``MODEL`` in it are filled in.
        vectors: Keys of the vectors in the answer.
        headers: Headers, apart from those that every request has.
        expected: Name of the vectors in the reference.
    """

    path: str
    body: dict[str, Any]
    vectors: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=lambda: JSON)
    expected: str = "passages"


OPENAI_VECTORS = ("data", "*", "embedding")

RECORDED = {
    "Milvus, TEI function, inserted": Recorded("/embed", {"inputs": "TEXTS"}),
    "Milvus, TEI function with its settings": Recorded(
        "/embed",
        {"inputs": "TEXTS", "truncate": True, "truncation_direction": "Right"},
        headers={**JSON, "Authorization": "Bearer none"},
    ),
    "RAGFlow, HuggingFace, texts": Recorded("/embed", {"inputs": "TEXTS"}),
    "RAGFlow, HuggingFace, a query": Recorded("/embed", {"inputs": "TEXT"}),
    "RAGFlow, OpenAI-API-Compatible": Recorded(
        "/v1/embeddings",
        {"input": "TEXTS", "model": "MODEL", "encoding_format": "float", "drop_params": True},
        OPENAI_VECTORS,
    ),
    "RAGFlow, Ollama, texts": Recorded(
        "/api/embed",
        {"model": "MODEL", "input": "TEXTS", "options": {"use_mmap": True}, "keep_alive": -1},
        ("embeddings",),
    ),
    "RAGFlow, NVIDIA": Recorded(
        "/v1/embeddings",
        {
            "input": "TEXTS",
            "input_type": "query",
            "model": "MODEL",
            "encoding_format": "float",
            "truncate": "END",
        },
        OPENAI_VECTORS,
        expected="queries",
    ),
    "Dify, OpenAI-compatible": Recorded(
        "/v1/embeddings",
        {"model": "MODEL", "input": "TEXTS"},
        OPENAI_VECTORS,
        headers={**JSON, "Authorization": ""},
    ),
    "Weaviate, text2vec-openai": Recorded(
        "/v1/embeddings",
        {"input": "TEXTS", "model": "MODEL"},
        OPENAI_VECTORS,
        headers={**JSON, "Authorization": "Bearer none"},
    ),
    "Weaviate, text2vec-huggingface": Recorded(
        "", {"inputs": "TEXTS", "options": {"wait_for_model": True, "use_cache": True}}
    ),
    "Weaviate, text2vec-openai, fewer dimensions": Recorded(
        "/v1/embeddings",
        {"input": "TEXTS", "model": "MODEL", "dimensions": 7},
        OPENAI_VECTORS,
        expected="7 dimensions",
    ),
    "Weaviate, text2vec-ollama": Recorded(
        "/api/embed", {"model": "MODEL", "input": "TEXTS"}, ("embeddings",), headers={}
    ),
    "Weaviate, text2vec-transformers, a batch of objects": Recorded(
        "/vectors", {"texts": "TEXTS", "config": {"task_type": "passage"}}, ("vectors",)
    ),
    "Weaviate, text2vec-transformers, a batch of queries": Recorded(
        "/vectors",
        {"texts": "TEXTS", "config": {"task_type": "query", "pooling_strategy": "cls"}},
        ("vectors",),
        expected="queries",
    ),
}


def filled(value: Any, model: Model) -> Any:
    """Return a recorded body for a model."""
    if isinstance(value, dict):
        return {key: filled(one, model) for key, one in value.items()}
    texts = {"TEXTS": model.texts, "TEXT": model.texts[0], "MODEL": model.name}
    return texts.get(value, value) if isinstance(value, str) else value


def at(answer: Any, keys: tuple[str, ...]) -> Any:
    """Return what is at a path of keys; ``*`` takes each item of a list."""
    if not keys:
        return answer
    if keys[0] == "*":
        return [at(one, keys[1:]) for one in answer]
    return at(answer[keys[0]], keys[1:])


def post(url: str, body: dict[str, Any], headers: dict[str, str] = JSON) -> httpx.Response:
    """Send a body with these headers and no other that says what it is."""
    return httpx.post(url, content=json.dumps(body).encode(), headers=headers)


def ask(url: str, body: dict[str, Any], headers: dict[str, str] = JSON) -> Any:
    answer = post(url, body, headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_a_recorded_request_is_answered_with_the_vectors_of_encode(docs: Model, recorded: Recorded):
    body = filled(recorded.body, docs)
    answer = ask(docs.url + recorded.path, body, recorded.headers)
    expected = docs.outputs[recorded.expected]
    if "TEXT" in recorded.body.values():
        expected = expected[:1]
    assert_same(at(answer, recorded.vectors), expected)


def test_ragflow_queries_ollama_by_the_older_route(docs: Model):
    body = {"model": docs.name, "prompt": docs.texts[0], "options": {"use_mmap": True},
            "keep_alive": -1}  # fmt: skip
    assert_same(ask(f"{docs.url}/api/embeddings", body)["embedding"], docs.outputs["passages"][0])


@pytest.mark.parametrize(("task", "expected"), [("passage", "passages"), ("query", "queries")])
def test_weaviates_text2vec_transformers_sends_one_text(docs: Model, task: str, expected: str):
    for path in ("/.well-known/ready", "/.well-known/live"):
        assert httpx.get(docs.url + path).is_success
    assert isinstance(httpx.get(f"{docs.url}/meta").raise_for_status().json(), dict)
    for text, vector in zip(docs.texts, docs.outputs[expected], strict=True):
        body = {
            "text": text, "dims": 0, "vector": None, "error": "",
            "config": {"pooling_strategy": "masked_mean", "task_type": task},
        }  # fmt: skip
        answer = ask(f"{docs.url}/vectors", body, {})
        assert answer["text"] == text
        assert answer["dims"] == len(vector)
        assert_same(answer["vector"], vector)


def test_weaviate_reads_the_error_of_text2vec_transformers(docs: Model):
    refused = post(f"{docs.url}/vectors", {"text": "one", "config": {"dimensions": 49}}, {})
    assert refused.status_code == 400
    assert "48" in refused.json()["error"]


def test_difys_plugin_for_tei_counts_tokens_before_it_embeds(docs: Model):
    # This is what it sends where no key is set.
    headers = {**JSON, "Authorization": "Bearer None"}
    info = httpx.get(f"{docs.url}/info", headers=headers).raise_for_status().json()
    assert next(iter(info["model_type"])) == "embedding"
    assert info["max_client_batch_size"] >= len(docs.texts)
    texts = [*docs.texts, docs.too_long]
    tokens = ask(f"{docs.url}/tokenize", {"inputs": texts}, headers)
    room = info["max_input_length"]
    assert [len(one) >= room for one in tokens] == [*[False] * len(docs.texts), True]
    # A text that does not fit is cut where a token starts, 21 before the end.
    cut = texts[-1][: tokens[-1][room - 21]["start"]]
    answer = ask(f"{docs.url}/v1/embeddings", {"input": [*docs.texts, cut]}, headers)
    assert_same(at(answer["data"][:-1], ("*", "embedding")), docs.outputs["passages"])
    kept = sum(map(len, tokens[:-1])) + room - 20
    assert answer["usage"]["total_tokens"] == kept


def qdrant_body(model: Model, inference: str | None, **options: Any) -> dict[str, Any]:
    """Return the body by which Qdrant has texts embedded by a model."""
    inputs = [
        {"data": text, "data_type": "text", "model": model.name, "options": options or None}
        for text in model.texts
    ]
    return {"inputs": inputs, "inference": inference, "token": None}


def tokens_of(answer: dict[str, Any], model: Model) -> int:
    """Return the tokens that Qdrant counts; it fails on any other form than this."""
    usage: dict[str, dict[str, dict[str, int]]] = answer["usage"]
    return usage["models"][model.name]["tokens"]


@pytest.mark.parametrize(
    ("inference", "expected"), [("update", "passages"), ("search", "queries"), (None, "passages")]
)
def test_qdrant_has_points_and_queries_embedded(docs: Model, inference, expected: str):
    answer = ask(f"{docs.url}/infer", qdrant_body(docs, inference))
    assert_same(answer["embeddings"], docs.outputs[expected])
    assert tokens_of(answer, docs) > len(docs.texts)


def test_qdrant_has_the_three_outputs_of_m3(m3: Model):
    dense = ask(f"{m3.url}/infer", qdrant_body(m3, "update"))
    assert_same(dense["embeddings"], m3.outputs["passages"])
    sparse = ask(f"{m3.url}/infer", qdrant_body(m3, "update", output="sparse"))
    for found, weights in zip(sparse["embeddings"], m3.outputs["lexical_weights"], strict=True):
        assert_same_weights(found["indices"], found["values"], weights)
    many = ask(f"{m3.url}/infer", qdrant_body(m3, "update", output="colbert_vecs"))
    for found, vectors in zip(many["embeddings"], m3.outputs["colbert_vecs"], strict=True):
        assert_same(found, vectors)


def test_a_point_of_qdrant_may_have_vectors_of_several_models(both: str, docs: Model, m3: Model):
    bodies = [qdrant_body(docs, "update"), qdrant_body(m3, "update", output="sparse")]
    inputs = [
        one for pair in zip(*(body["inputs"] for body in bodies), strict=True) for one in pair
    ]
    answer = ask(f"{both}/infer", {"inputs": inputs, "inference": "update", "token": None})
    assert_same(answer["embeddings"][::2], docs.outputs["passages"])
    for found, weights in zip(
        answer["embeddings"][1::2], m3.outputs["lexical_weights"], strict=True
    ):
        assert_same_weights(found["indices"], found["values"], weights)
    assert tokens_of(answer, docs) > 0
    assert tokens_of(answer, m3) > 0


def test_qdrant_shows_the_error_to_its_user(docs: Model):
    body = qdrant_body(docs, "update")
    body["inputs"][1]["data_type"] = "image"
    refused = post(f"{docs.url}/infer", body)
    assert refused.status_code == 400
    assert "image" in refused.json()["error"]


def test_tei_routes_give_m3s_other_outputs_as_milvus_and_qdrant_scripts_read_them(m3: Model):
    sparse = ask(f"{m3.url}/embed_sparse", {"inputs": m3.texts})
    for found, weights in zip(sparse, m3.outputs["lexical_weights"], strict=True):
        assert_same_weights([x["index"] for x in found], [x["value"] for x in found], weights)
    many = ask(f"{m3.url}/embed_all", {"inputs": m3.texts})
    for found, vectors in zip(many, m3.outputs["colbert_vecs"], strict=True):
        assert_same(found, vectors)


def test_a_model_without_them_says_that_it_has_none(docs: Model):
    for route in ("/embed_sparse", "/embed_all"):
        refused = post(docs.url + route, {"inputs": docs.texts})
        assert refused.status_code == 424
        assert refused.json()["error_type"] == "Backend"
