"""Requests for scores of programs that need a server of their own to run, or another language.

The bodies are what their code sends, and answers are read as it reads them (Open WebUI, Dify's
plugins, RAGFlow, Milvus, Weaviate and Elasticsearch, read in December 2026).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.serving_clients.servers import Model, Reranker, assert_ranked

Pairs = list[tuple[int, float]]


def as_tei(answer: Any) -> Pairs:
    return [(each["index"], each["score"]) for each in answer]


def as_cohere(answer: Any) -> Pairs:
    return [(each["index"], each["relevance_score"]) for each in answer["results"]]


def as_siliconflow(answer: Any) -> Pairs:
    tokens = answer["meta"]["tokens"]
    assert tokens["input_tokens"] + tokens["output_tokens"] > 0
    return as_cohere(answer)


def as_jina(answer: Any) -> Pairs:
    assert answer["usage"]["total_tokens"] > 0
    return as_cohere(answer)


@dataclass(frozen=True)
class Recorded:
    """A request for the scores of texts.

    Attributes:
        path: Its path below the address of a reranker.
        body: The body. ``TEXTS``, ``COUNT``, ``QUERY`` and ``MODEL`` in it are filled in.
        read: Returns positions and scores of an answer.
        top: How many it asks for; None for all.
        key: What it sends as a key, if it sends one.
    """

    path: str
    body: dict[str, Any]
    read: Callable[[Any], Pairs]
    top: int | None = None
    key: str | None = "Bearer none"


NAMED = {"model": "MODEL", "query": "QUERY", "documents": "TEXTS"}

RECORDED = {
    "Open WebUI, external": Recorded("/v1/rerank", {**NAMED, "top_n": "COUNT"}, as_cohere),
    "Dify, TEI": Recorded(
        "/rerank", {"query": "QUERY", "texts": "TEXTS", "return_text": True}, as_tei, key=None
    ),
    "Dify, Jina": Recorded(
        "/v1/rerank", {**NAMED, "top_n": None, "return_documents": False}, as_cohere
    ),
    "Dify, OpenAI-compatible": Recorded("/v1/rerank", {**NAMED, "top_n": 3}, as_cohere, 3, ""),
    "Dify, Xinference": Recorded(
        "/v1/rerank",
        {**NAMED, "top_n": 4, "max_chunks_per_doc": None, "return_documents": True},
        as_cohere,
        4,
    ),
    "RAGFlow, Jina": Recorded("/v1/rerank", {**NAMED, "top_n": "COUNT"}, as_jina),
    "RAGFlow, Xinference": Recorded(
        "/v1/rerank", {**NAMED, "return_documents": "true", "return_len": "true"}, as_cohere
    ),
    "RAGFlow, LocalAI and OpenAI-API-Compatible": Recorded(
        "/rerank", {**NAMED, "top_n": "COUNT"}, as_cohere
    ),
    "RAGFlow, SiliconFlow": Recorded(
        "/v1/rerank",
        {
            **NAMED,
            "top_n": "COUNT",
            "return_documents": False,
            "max_chunks_per_doc": 1024,
            "overlap_tokens": 80,
        },
        as_siliconflow,
    ),
    "RAGFlow, HuggingFace": Recorded(
        "/rerank",
        {"query": "QUERY", "texts": "TEXTS", "raw_scores": False, "truncate": True},
        as_tei,
        key=None,
    ),
    "Milvus, TEI function": Recorded(
        "/rerank",
        {"query": "QUERY", "texts": "TEXTS", "truncate": True, "truncation_direction": "Right"},
        as_tei,
        key=None,
    ),
}


def filled(value: Any, ranker: Reranker) -> Any:
    """Return a recorded body for a reranker."""
    known = {
        "TEXTS": ranker.texts, "COUNT": len(ranker.texts), "QUERY": ranker.query,
        "MODEL": ranker.name,
    }  # fmt: skip
    return {key: known.get(one, one) if isinstance(one, str) else one for key, one in value.items()}


def post(url: str, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = key
    return httpx.post(url, content=json.dumps(body).encode(), headers=headers)


@pytest.mark.parametrize("recorded", RECORDED.values(), ids=RECORDED)
def test_a_recorded_request_is_answered_with_the_scores(ranker: Reranker, recorded: Recorded):
    answer = post(ranker.url + recorded.path, filled(recorded.body, ranker), recorded.key)
    assert answer.status_code == 200, answer.text
    assert_ranked(recorded.read(answer.json()), ranker, recorded.top)


def test_difys_plugin_for_tei_finds_a_reranker_and_reads_its_texts(ranker: Reranker, docs: Model):
    assert next(iter(httpx.get(f"{ranker.url}/info").json()["model_type"])) == "reranker"
    assert next(iter(httpx.get(f"{docs.url}/info").json()["model_type"])) == "embedding"
    body = filled({"query": "QUERY", "texts": "TEXTS", "return_text": True}, ranker)
    for each in post(f"{ranker.url}/rerank", body).json():
        assert each["text"] == ranker.texts[each["index"]]


def test_difys_plugin_for_xinference_reads_the_texts(ranker: Reranker):
    body = filled({**NAMED, "return_documents": True}, ranker)
    for each in post(f"{ranker.url}/v1/rerank", body).json()["results"]:
        assert each["document"]["text"] == ranker.texts[each["index"]]


def test_weaviate_asks_for_the_scores_of_documents(ranker: Reranker):
    assert httpx.get(f"{ranker.url}/.well-known/ready").is_success
    assert isinstance(httpx.get(f"{ranker.url}/meta").raise_for_status().json(), dict)
    # It always sends both, and reads an answer that has any of these keys.
    body = {"query": ranker.query, "documents": ranker.texts, "property": ""}
    answer = post(f"{ranker.url}/rerank", body)
    assert answer.status_code == 200
    assert set(answer.json()) <= {"query", "scores", "property", "score", "error"}
    scores = answer.json()["scores"]
    assert [each["document"] for each in scores] == ranker.texts
    assert [each["score"] for each in scores] == pytest.approx(ranker.scores, abs=1e-5)


def test_weaviate_reads_the_error(ranker: Reranker, docs: Model):
    for url in (ranker.url, docs.url):
        body = {"query": "a", "documents": ["b"] * 3000, "property": ""}
        refused = post(f"{url}/rerank", body)
        assert refused.status_code in (413, 424)
        assert isinstance(refused.json()["error"], str)


def elasticsearch_reads(answer: httpx.Response) -> list[tuple[int, float, str | None]]:
    """Return what Elasticsearch reads of an answer; it refuses fields that it does not know."""
    assert isinstance(answer.json(), list)
    found = []
    for each in answer.json():
        assert set(each) <= {"index", "score", "relevance_score", "text", "document"}
        text = each["document"]["text"] if "document" in each else each.get("text")
        found.append((each["index"], each.get("relevance_score", each.get("score")), text))
    return sorted(found, key=lambda one: -one[1])


def test_elasticsearch_ranks_documents(ranker: Reranker):
    key = "Bearer none"
    body = {"documents": ranker.texts, "query": ranker.query}
    found = elasticsearch_reads(post(f"{ranker.url}/rerank", body, key))
    assert_ranked([(row, score) for row, score, _ in found], ranker, None)
    body = {**body, "return_documents": True, "top_n": 2, "max_chunks_per_doc": 5}
    found = elasticsearch_reads(post(f"{ranker.url}/rerank", body, key))
    assert_ranked([(row, score) for row, score, _ in found], ranker, 2)
    assert [text for *_, text in found] == [ranker.texts[row] for row in ranker.order[:2]]


def test_elasticsearch_reads_the_error(ranker: Reranker):
    refused = post(f"{ranker.url}/rerank", {"documents": ["a"] * 3000, "query": "b"}, "Bearer none")
    assert refused.status_code == 413  # after which it sends half of them
    assert "3,000 inputs" in refused.json()["error"]
