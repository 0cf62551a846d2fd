"""``/rerank`` in this process: each client's form has the scores of ``compute_score``."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from bge_runtime import FlagLLMReranker, FlagModel, FlagReranker
from bge_runtime.errors import InferenceError
from bge_runtime.serving import ServeOptions, create_app, open_served_model
from bge_runtime.serving.scheduling import Scheduler, execution
from tests.helpers.decoder_rerankers import export_tiny_reranker
from tests.helpers.rerankers import reranker_bundle

QUERY = "which words are these"
TEXTS = ["a", "several words of text", "words " * 700, "a", "ünïcödé and more", ""]

pytestmark = pytest.mark.usefixtures("made_once")


@pytest.fixture(scope="module")
def bert(made_once):
    model = FlagReranker(str(reranker_bundle("bert", targets=("cpu",))), precision="fp32")
    assert model.engine.info.precision == "fp32"
    return model


@pytest.fixture(scope="module")
def xlm_roberta(made_once):
    bundle = reranker_bundle("long xlm-roberta", targets=("cpu",))
    return FlagReranker(str(bundle), precision="fp32")


@pytest.fixture(scope="module")
def dense(tiny_bundle):
    return FlagModel(str(tiny_bundle), precision="fp32")


@pytest.fixture(scope="module")
def client(bert):
    """A server of one reranker."""
    with TestClient(create_app({"bert": bert})) as client:
        yield client


@pytest.fixture(scope="module")
def several(bert, xlm_roberta, dense):
    """A server of two rerankers and an embedder."""
    models = {"bert": bert, "long": xlm_roberta, "dense": dense}
    with TestClient(create_app(models)) as client:
        yield client


def post(client, path, **body):
    answer = client.post(path, json={"query": QUERY, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def scores_of(model, texts=TEXTS, query=QUERY, **options):
    """Return what ``compute_score`` returns at the length of the server."""
    pairs = [(query, text) for text in texts]
    length = model.model_max_length
    return model.compute_score(pairs, max_length=length, **{"normalize": True, **options})


def check_ranked(found, scores, *, name="score", top=None):
    """Check the scores of ranked items by their positions, and their order."""
    assert len(found) == (len(scores) if top is None else top)
    for item in found:
        assert item[name] == pytest.approx(scores[item["index"]], abs=1e-5)
    best = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    assert [item["index"] for item in found] == best[: len(found)]


# -- Forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rerank", "/"])
def test_teis_form_has_the_scores_of_compute_score(client, bert, path):
    answer = client.post(path, json={"query": QUERY, "texts": TEXTS})
    check_ranked(answer.json(), scores_of(bert))
    assert all(set(item) == {"index", "score"} for item in answer.json())
    assert answer.headers["x-truncated-inputs"] == "1"
    assert float(answer.headers["x-total-time"]) > 0


def test_teis_raw_scores_are_logits(client, bert):
    check_ranked(
        post(client, "/rerank", texts=TEXTS, raw_scores=True), scores_of(bert, normalize=False)
    )


def test_teis_texts_come_back_where_asked_and_top_n_is_read(client, bert):
    found = post(client, "/rerank", texts=TEXTS, return_text=True, top_n=2)
    check_ranked(found, scores_of(bert), top=2)
    assert [item["text"] for item in found] == [TEXTS[item["index"]] for item in found]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_coheres_form_has_them_too(client, bert, path):
    found = post(client, path, model="bert", documents=TEXTS)
    assert list(found) == ["id", "model", "results", "usage", "meta"]
    check_ranked(found["results"], scores_of(bert), name="relevance_score")
    assert all(set(item) == {"index", "relevance_score"} for item in found["results"])
    rows = bert.pair_plan(QUERY, max_length=bert.model_max_length).tokenize(TEXTS)
    tokens = sum(map(len, rows))
    assert found["model"] == "bert"
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert found["meta"]["tokens"] == {"input_tokens": tokens, "output_tokens": 0}


def test_coheres_documents_may_be_objects(client, bert):
    objects = [{"text": text, "page": page} for page, text in enumerate(TEXTS[:2])]
    documents = [*objects, *TEXTS[2:]]
    found = post(
        client, "/v1/rerank", model="bert", documents=documents, return_documents="true", top_n="4"
    )
    check_ranked(found["results"], scores_of(bert), name="relevance_score", top=4)
    for item in found["results"]:
        sent = documents[item["index"]]
        assert item["document"] == (sent if isinstance(sent, dict) else {"text": sent})


def test_rank_fields_are_read_in_their_order(client, bert):
    documents = [{"title": "a title", "body": "several words"}, {"body": "only a body"}]
    found = post(client, "/v1/rerank", documents=documents, rank_fields=["title", "body"])
    scores = scores_of(bert, ["a title\nseveral words", "only a body"])
    check_ranked(found["results"], scores, name="relevance_score")


@pytest.mark.parametrize("documents", [[{"page": 1}], [{"text": 5}], ["a", {}]])
def test_an_object_without_a_text_is_refused(client, documents):
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": documents})
    assert answer.status_code == 400
    assert f"document {len(documents) - 1} is an object without a text" in answer.json()["message"]


def test_weaviates_form_keeps_the_order_of_the_documents(client, bert):
    found = post(client, "/rerank", documents=TEXTS, property="")
    assert list(found) == ["query", "scores", "property", "score"]
    assert found["query"] == QUERY
    assert [item["document"] for item in found["scores"]] == TEXTS
    scores = [item["score"] for item in found["scores"]]
    np.testing.assert_allclose(scores, scores_of(bert), rtol=0, atol=1e-5)


def test_weaviates_older_form_is_one_property(client, bert):
    found = post(client, "/rerank", property=TEXTS[1])
    (score,) = scores_of(bert, [TEXTS[1]])
    expected = {"query": QUERY, "scores": None, "property": TEXTS[1]}
    assert found == {**expected, "score": pytest.approx(score, abs=1e-5)}


def test_elasticsearchs_form_has_no_other_field(client, bert):
    check_ranked(post(client, "/rerank", documents=TEXTS), scores_of(bert), name="relevance_score")
    found = post(client, "/rerank", documents=TEXTS, return_documents=True, top_n=3)
    check_ranked(found, scores_of(bert), name="relevance_score", top=3)
    for item in found:
        assert set(item) == {"index", "relevance_score", "document"}
        assert item["document"] == {"text": TEXTS[item["index"]]}


def test_unknown_fields_and_nulls_are_ignored(client, bert):
    found = post(
        client, "/rerank", texts=TEXTS, drop_params=True, return_len="true", top_n=None,
        truncation_direction=None, max_chunks_per_doc=3,
    )  # fmt: skip
    check_ranked(found, scores_of(bert))
    assert len(post(client, "/rerank", texts=TEXTS, top_n=0)) == len(TEXTS)


# -- Values --------------------------------------------------------------------------------


def test_scores_do_not_depend_on_what_is_in_the_batch(several, bert, xlm_roberta):
    names = {"bert": bert, "long": xlm_roberta}
    requests = [
        (name, f"query {number}", [f"text {number}", "words " * (7 * number % 40), TEXTS[1]])
        for number in range(24)
        for name in names
    ]

    def ask(request):
        name, query, texts = request
        body = {"model": name, "query": query, "documents": texts, "raw_scores": True}
        results = several.post("/v2/rerank", json=body).json()["results"]
        return {item["index"]: item["relevance_score"] for item in results}

    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, requests))
    for (name, query, texts), found in zip(requests, answers, strict=True):
        expected = scores_of(names[name], texts, query, normalize=False)
        np.testing.assert_allclose([found[row] for row in range(3)], expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def qwen3(made_once):
    folder = made_once("tiny-qwen3-reranker", partial(export_tiny_reranker, name="qwen3"))
    model = FlagLLMReranker(str(folder / "bundle"), precision="fp32")
    assert model.engine.info.precision == "fp32"
    return model


def test_a_decoder_computes_a_query_once_for_its_passages(qwen3):
    query = "a query that is as long as those of people who ask for many things at once"
    expected = scores_of(qwen3, query=query, normalize=False)
    with TestClient(create_app(qwen3)) as client:
        qwen3.prefix_cache.clear()
        body = {"query": query, "raw_scores": True}
        one = client.post("/rerank", json={**body, "texts": TEXTS[:1]}).json()
        # Of one passage, only what stands before all queries is computed for others.
        assert qwen3.prefix_cache.stats.tokens_saved == 0
        assert one[0]["score"] == pytest.approx(expected[0], abs=1e-5)
        check_ranked(client.post("/rerank", json={**body, "texts": TEXTS}).json(), expected)
        stats = qwen3.prefix_cache.stats
        query_tokens = len(qwen3.tokenizer.encode_bare([query])[0])
        assert stats.tokens_saved >= (len(TEXTS) - 1) * query_tokens
        check_ranked(client.post("/rerank", json={**body, "texts": TEXTS}).json(), expected)
        assert qwen3.prefix_cache.stats.misses == stats.misses


def test_decoders_are_served_beside_other_requests(qwen3):
    requests = [(f"query {number}", [f"text {number}", TEXTS[1]]) for number in range(12)]
    with TestClient(create_app(qwen3)) as client, ThreadPoolExecutor(6) as threads:

        def ask(request):
            body = {"query": request[0], "texts": request[1], "raw_scores": True}
            return client.post("/rerank", json=body).json()

        answers = list(threads.map(ask, requests))
    for (query, texts), found in zip(requests, answers, strict=True):
        check_ranked(found, scores_of(qwen3, texts, query, normalize=False))


def test_a_long_request_is_computed_as_well(client, bert):
    texts = [f"text {number} " + "words " * (number % 50) for number in range(500)]
    check_ranked(post(client, "/rerank", texts=texts), scores_of(bert, texts))


def test_the_instructions_of_the_server_are_put_before_texts(made_once, bert):
    bundle = reranker_bundle("bert", targets=("cpu",))
    model = open_served_model(
        str(bundle), precision="fp32", query_instruction="find: ", passage_instruction="text: "
    )
    with TestClient(create_app(model)) as client:
        found = post(client, "/rerank", texts=TEXTS[:2], raw_scores=True)
    texts = [f"text: {text}" for text in TEXTS[:2]]
    check_ranked(found, scores_of(bert, texts, f"find: {QUERY}", normalize=False))


def test_a_decoder_is_asked_as_its_class_asks_it(qwen3):
    opened = open_served_model(str(qwen3.bundle.path), precision="fp32")
    assert scores_of(opened) == pytest.approx(scores_of(qwen3), abs=1e-5)
    for name in ("query_instruction_for_rerank", "passage_instruction_for_rerank"):
        assert getattr(opened, name) == getattr(qwen3, name)


# -- Lengths -------------------------------------------------------------------------------


def test_pairs_that_are_too_long_are_an_error_where_asked(client):
    for options, hint in (
        ({"truncate": False}, "send truncate: true"),
        ({"truncate": True, "truncation_direction": "Left"}, "truncation_direction: right"),
    ):
        answer = client.post("/rerank", json={"query": QUERY, "texts": TEXTS, **options})
        assert answer.status_code == 422
        assert "passage 2 have more than 512 tokens together" in answer.json()["error"]
        assert hint in answer.json()["error"]
        # It matters only where something is cut.
        short = client.post("/rerank", json={"query": QUERY, "texts": TEXTS[:2], **options})
        assert short.status_code == 200


def test_a_document_is_cut_at_the_tokens_that_a_request_allows(client, bert):
    answer = client.post(
        "/v2/rerank",
        json={"query": QUERY, "documents": ["one two three four five", "one"],
              "max_tokens_per_doc": 3},
    )  # fmt: skip
    (three,) = bert.tokenizer.locate(["one two three four five"])
    cut = "one two three four five"[: three.starts[3]]
    check_ranked(answer.json()["results"], scores_of(bert, [cut, "one"]), name="relevance_score")
    assert answer.headers["x-truncated-inputs"] == "1"


def test_texts_that_would_take_the_memory_of_the_machine_are_refused(client):
    endless = "a.a.a." * 100_000
    for name, body in (
        ("the query", {"query": endless, "texts": ["a"]}),
        ("input 1", {"query": "a", "texts": ["a", endless]}),
    ):
        answer = client.post("/rerank", json=body)
        assert answer.status_code == 413
        assert answer.json()["error"].startswith(f"{name} has 600,000 characters")
    # Where words are plain, the beginning of one is enough.
    assert client.post("/rerank", json={"query": "a", "texts": ["word " * 200_000]}).is_success


def test_what_is_to_be_reranked_waits_with_queries_unless_it_is_much(client, monkeypatch):
    lanes = []
    submit = Scheduler.submit

    def noting(self, work):
        lanes.append((sum(map(len, work.tokens)), work.bulk))
        submit(self, work)

    monkeypatch.setattr(Scheduler, "submit", noting)
    for texts in (["a"], ["words " * 200] * 9, ["words " * 200] * 80):
        post(client, "/rerank", texts=texts)
    assert [tokens > 8192 for tokens, _ in lanes] == [False, False, True]
    assert [bulk for _, bulk in lanes] == [False, False, True]


def test_max_length_of_the_server_is_that_of_pairs(bert):
    with TestClient(create_app(bert, max_length=24)) as client:
        found = post(client, "/rerank", texts=TEXTS, raw_scores=True)
        assert client.get("/info").json()["max_input_length"] == 24
    pairs = [(QUERY, text) for text in TEXTS]
    check_ranked(found, bert.compute_score(pairs, max_length=24))


def test_a_max_length_without_room_for_texts_is_refused_at_the_start(bert):
    with pytest.raises(ValueError, match="max_length=3 leaves no room"):
        create_app(bert, max_length=3)


# -- Errors --------------------------------------------------------------------------------

BODIES = {
    "tei": ("/rerank", {"texts": ["a"]}),
    "cohere": ("/v2/rerank", {"documents": ["a"]}),
    "weaviate": ("/rerank", {"documents": ["a"], "property": ""}),
    "elasticsearch": ("/rerank", {"documents": ["a"]}),
}
"""A path and a body for each form, without a query and a model."""


def check_form(form, answer, status, message, error_type=None):
    body = answer.json()
    if form == "cohere":
        assert set(body) == {"message"}
        assert message in body["message"]
    else:
        tei = form in ("tei", "elasticsearch")
        assert set(body) == ({"error", "error_type"} if tei else {"error"})
        assert message in body["error"]
        assert error_type is None or not tei or body["error_type"] == error_type
    expected = status
    if form in ("tei", "elasticsearch") and error_type != "Empty":
        expected = {400: 422, 500: 424}.get(status, status)
    assert answer.status_code == expected


@pytest.mark.parametrize("form", BODIES)
def test_what_is_wrong_is_said_in_the_form_of_the_client(client, form):
    path, body = BODIES[form]
    ask = partial(client.post, path)
    answer = ask(json={"query": QUERY, **body, "top_n": -1})
    check_form(form, answer, 400, "top_n is -1", "Validation")
    field = "texts" if form == "tei" else "documents"
    empty = ask(json={"query": QUERY, **body, field: []})
    check_form(form, empty, 400, "there is no input", "Empty")


@pytest.mark.parametrize("form", BODIES)
def test_limits_are_those_of_the_server(bert, form):
    path, body = BODIES[form]
    field = "texts" if form == "tei" else "documents"
    with TestClient(create_app(bert, ServeOptions(max_inputs=2, max_request_tokens=40))) as client:
        many = client.post(path, json={"query": QUERY, **body, field: ["a"] * 3})
        check_form(form, many, 413, "3 inputs, and 2 is the limit")
        long = client.post(path, json={"query": QUERY, **body, field: ["words " * 30] * 2})
        check_form(form, long, 413, "and 40 is the limit")


@pytest.mark.parametrize("form", BODIES)
def test_an_embedder_that_is_to_rerank_says_what_it_is(several, form):
    path, body = BODIES[form]
    answer = several.post(f"/dense{path}", json={"query": QUERY, **body})
    check_form(form, answer, 424, "dense is an embedder", "Backend")


def test_a_reranker_that_is_to_embed_says_what_it_is(client):
    for path, body in (
        ("/embed", {"inputs": "a"}),
        ("/embed_sparse", {"inputs": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/api/embed", {"input": "a"}),
        ("/vectors", {"text": "a"}),
        ("/infer", {"inputs": [{"data": "a"}]}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == (400 if path == "/infer" else 424), path  # as Qdrant shows it
        error = answer.json()["error"]
        message = error["message"] if isinstance(error, dict) else error
        assert "bert is a reranker" in message
        assert "POST /rerank" in message


@pytest.mark.parametrize(
    "body",
    [{}, {"documents": ["a"], "texts": ["a"]}, {"documents": None}, {"property": None}],
    ids=str,
)
def test_a_body_with_nothing_to_score_or_too_much_is_refused(client, body):
    answer = client.post("/rerank", json={"query": QUERY, **body})
    assert answer.status_code in (400, 422)
    assert "send" in answer.json()["error"]


@pytest.mark.parametrize("form", BODIES)
def test_an_engine_that_fails_is_told_in_the_form_of_the_client(client, form, monkeypatch):
    path, body = BODIES[form]

    def fail(*_, **__):
        raise InferenceError("the engine is broken")

    monkeypatch.setattr(execution, "_REOPEN_S", 3600)
    monkeypatch.setattr(execution, "compute_batch", fail)
    answer = client.post(path, json={"query": QUERY, **body})
    check_form(form, answer, 500, "the engine is broken", "Backend")
    health = client.get("/health")
    assert health.status_code == 503
    monkeypatch.undo()
    assert client.post(path, json={"query": QUERY, **body}).status_code == 200
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("form", BODIES)
def test_a_score_that_is_no_number_fails_its_request_only(client, bert, form, monkeypatch):
    path, body = BODIES[form]
    engine = type(bert.engine)
    run = engine.run

    def faulty(self, ids, mask, outputs, **options):
        found = [output.copy() for output in run(self, ids, mask, outputs, **options)]
        found[0][mask.sum(axis=1) > 100] = np.nan
        return found

    monkeypatch.setattr(engine, "run", faulty)
    field = "texts" if form == "tei" else "documents"
    answer = client.post(path, json={"query": QUERY, **body, field: ["a", "words " * 200]})
    check_form(form, answer, 500, "input 1 has NaN", "Backend")
    assert client.post(path, json={"query": QUERY, **body}).status_code == 200


def test_another_method_is_refused_in_the_form_of_the_path(client):
    for form, (path, _) in BODIES.items():
        answer = client.get(path)
        assert answer.status_code == 405
        assert set(answer.json()) == ({"message"} if form == "cohere" else {"error", "error_type"})


def test_a_request_whose_time_is_up_is_told_so(client):
    answer = client.post(
        "/v2/rerank",
        json={"query": QUERY, "documents": ["words " * 300] * 64},
        headers={"x-request-timeout-ms": "1"},
    )
    check_form("cohere", answer, 504, "no answer within 0.001 s")


# -- What is served ------------------------------------------------------------------------


def test_a_model_is_found_by_name_by_path_or_by_being_the_only_one_of_its_kind(
    several, bert, dense
):
    for path, body in (
        ("/rerank", {"model": "bert"}),
        ("/bert/v1/rerank", {}),
        ("/bert/rerank", {}),
    ):
        found = post(several, path, documents=TEXTS, **body)
        results = found if isinstance(found, list) else found["results"]
        check_ranked(results, scores_of(bert), name="relevance_score")
    answer = several.post("/rerank", json={"query": QUERY, "texts": TEXTS})
    assert answer.status_code == 422
    assert "no model is named; this server has bert, long" in answer.json()["error"]
    (item,) = several.post("/v1/embeddings", json={"input": "a"}).json()["data"]
    np.testing.assert_allclose(item["embedding"], dense.encode("a"), rtol=0, atol=1e-6)


def test_what_a_server_says_of_a_reranker(several, client):
    info = several.get("/bert/info").json()
    assert list(info["model_type"]) == ["reranker"]
    assert info["outputs"] == ["score"]
    assert "dimensions" not in info
    assert list(several.get("/dense/info").json()["model_type"]) == ["embedding"]
    assert several.get("/bert/meta").json()["model_class"] == "reranker-encoder-only-base"
    assert [tag["name"] for tag in several.get("/api/tags").json()["models"]] == ["dense"]
    stats = several.get("/ui/stats").json()["models"]
    assert [model["kind"] for model in stats] == ["reranker", "reranker", "embedder"]
    assert stats[0]["parity"].keys() == {"pairs", "max_error", "error_share", "rank_correlation"}
    metrics = client.get("/metrics").text
    assert 'bge_healthy{model="bert"} 1.0' in metrics
    assert 'bge_truncated_inputs_total{model="bert"}' in metrics
    assert 'bge_requests_total{model="bert",route="/rerank",status="200"}' in metrics


def test_tokens_of_a_reranker_can_be_seen(client, bert):
    (tokens,) = client.post("/tokenize", json={"inputs": "a text"}).json()
    assert [token["id"] for token in tokens] == bert.tokenizer.tokenizer.encode("a text").ids


def test_only_what_a_model_does_is_documented(several, client):
    alone = client.get("/openapi.json").json()["paths"]
    assert {"/rerank", "/v1/rerank", "/v2/rerank", "/", "/tokenize", "/info"} <= set(alone)
    assert not {"/embed", "/v1/embeddings", "/api/embed", "/vectors", "/infer"} & set(alone)
    all_paths = set(several.get("/openapi.json").json()["paths"])
    assert {"/rerank", "/bert/rerank", "/long/v2/rerank", "/dense/embed"} <= all_paths
    assert not {"/bert/embed", "/dense/rerank"} & all_paths


def test_the_types_of_the_document_are_those_of_the_answers(client):
    jsonschema = pytest.importorskip("jsonschema")
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/rerank"]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    checker = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    for path, body in BODIES.values():
        checker.validate(post(client, path, return_documents=True, **body))
    checker.validate(post(client, "/rerank", property="a"))
    refused = operation["responses"]["424"]["content"]["application/json"]["schema"]
    names = {each["$ref"].rpartition("/")[2] for each in refused["anyOf"]}
    assert names == {"TEIError", "CohereError", "PlainError"}


def test_names_that_are_paths_of_the_server_are_refused(bert, dense):
    for name in ("rerank", "v2"):
        with pytest.raises(ValueError, match="part of its path"):
            create_app({name: bert, "dense": dense})


def test_options_of_a_server_hold_for_rerankers(bert):
    options = dataclasses.replace(ServeOptions(), api_keys=("key",))
    with TestClient(create_app(bert, options)) as client:
        refused = client.post("/v2/rerank", json={"query": QUERY, "documents": ["a"]})
        check_form("cohere", refused, 401, "an API key is missing")
        given = {"authorization": "Bearer key"}
        body = {"query": QUERY, "documents": ["a"]}
        assert client.post("/v2/rerank", json=body, headers=given).status_code == 200
