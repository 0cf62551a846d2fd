"""The application in this process: each route answers with what `encode` returns."""

from __future__ import annotations

import base64
import contextlib
import time

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from bge_runtime import BGEM3FlagModel, FlagICLModel, FlagLLMModel, FlagModel
from bge_runtime.serving import ServeOptions, create_app

TEXTS = ["a", "several words of text", "words " * 30, "a", "ünïcödé and more", ""]
QUERY = "Represent this sentence: "


@pytest.fixture(scope="module")
def dense(tiny_bundle):
    return FlagModel(
        str(tiny_bundle),
        precision="fp32",
        query_instruction_for_retrieval=QUERY,
        query_instruction_format="{}{}",
        passage_instruction_for_retrieval="passage: ",
    )


@pytest.fixture(scope="module")
def m3(tiny_m3_bundle):
    return BGEM3FlagModel(
        str(tiny_m3_bundle), precision="fp32", return_sparse=True, return_colbert_vecs=True
    )


@pytest.fixture(scope="module")
def client(dense, m3):
    """A server of two models, each below its name."""
    with TestClient(create_app({"dense": dense, "m3": m3})) as client:
        yield client


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def close(got, expected):
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=0, atol=1e-6)


def embeddings(answer):
    return [item["embedding"] for item in answer["data"]]


def test_openai_answers_with_what_encode_returns(client, dense):
    answer = post(client, "/v1/embeddings", input=TEXTS, model="dense")
    close(embeddings(answer), dense.encode(TEXTS))
    assert [item["index"] for item in answer["data"]] == list(range(len(TEXTS)))
    tokens = sum(len(ids) for ids in dense.tokenizer.encode(TEXTS, max_length=512))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["model"] == "dense"


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "<f4"), ("float16", "<f2")])
def test_base64_is_the_same_vector(client, dense, dtype, layout):
    answer = post(
        client, "/dense/v1/embeddings", input=TEXTS, encoding_format="base64", embed_dtype=dtype
    )
    got = [np.frombuffer(base64.b64decode(each), layout) for each in embeddings(answer)]
    expected = dense.encode(TEXTS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 if dtype == "float32" else 5e-4)


def test_numbers_may_be_rounded_to_float16(client, dense):
    answer = post(
        client, "/v1/embeddings", input=TEXTS, model="dense", encoding_format="float",
        embed_dtype="float16",
    )  # fmt: skip
    expected = dense.encode(TEXTS).astype(np.float16)
    got = np.array(embeddings(answer), dtype=np.float32)
    np.testing.assert_array_equal(got.astype(np.float16).astype(np.float32), got)
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-4)


def test_too_many_inputs_are_refused_and_one_text_of_many_ids_is_not(dense):
    options = ServeOptions(max_inputs=2, allow_token_ids=True)
    with TestClient(create_app(dense, options)) as client:
        for path, body in (
            ("/v1/embeddings", {"input": ["a"] * 3}),
            ("/v1/embeddings", {"input": [[5]] * 3}),
            ("/embed", {"inputs": ["a"] * 3}),
            ("/vectors", {"texts": ["a"] * 3}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 413, path
            assert "3 inputs, and 2 is the limit" in answer.text
        assert len(post(client, "/embed", inputs=[5, 6, 7])) == 1


def test_a_text_of_its_own_is_one_vector(client, dense):
    answer = post(client, "/dense/embeddings", input="a text")
    close(embeddings(answer), [dense.encode("a text")])


def test_dimensions_are_cut_before_normalization(client, dense):
    answer = post(client, "/dense/v1/embeddings", input=TEXTS, dimensions=7)
    cut = dense.encode(TEXTS)[:, :7]
    close(embeddings(answer), cut / np.linalg.norm(cut, axis=1, keepdims=True))


def test_vectors_keep_their_length_where_asked(client, tiny_bundle):
    raw = FlagModel(str(tiny_bundle), precision="fp32", normalize_embeddings=False).encode(TEXTS)
    close(post(client, "/dense/embed", inputs=TEXTS, normalize=False), raw)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dense/v1/embeddings", {"input": TEXTS, "input_type": "{}"}),
        ("/dense/v1/embeddings", {"input": TEXTS, "prompt_name": "{}"}),
        ("/dense/embed", {"inputs": TEXTS, "prompt_name": "{}"}),
        ("/dense/vectors", {"texts": TEXTS, "config": {"task_type": "{}"}}),
    ],
)
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_the_kind_of_a_text_chooses_the_instruction(client, dense, path, body, kind):
    filled = {
        key: dict.fromkeys(value, kind) if isinstance(value, dict) else value
        for key, value in body.items()
    }
    filled = {key: kind if value == "{}" else value for key, value in filled.items()}
    answer = post(client, path, **filled)
    if isinstance(answer, dict):
        answer = answer.get("vectors") or embeddings(answer)
    close(answer, (dense.encode_queries if kind == "query" else dense.encode_corpus)(TEXTS))


def test_qdrant_search_and_update_choose_the_instruction(client, dense):
    for inference, encode in (("search", dense.encode_queries), ("update", dense.encode_corpus)):
        inputs = [{"data": text, "data_type": "text", "model": "dense"} for text in TEXTS]
        answer = post(client, "/infer", inputs=inputs, inference=inference)
        close(answer["embeddings"], encode(TEXTS))


def test_prompts_of_sentence_transformers_are_known_by_name(client, dense):
    served = client.app.state.models[0]
    served.card.sentence_transformers.prompts["web"] = "Web search: "  # a plain dictionary
    try:
        answer = post(client, "/dense/embed", inputs=TEXTS, prompt_name="web")
        close(answer, dense.encode([f"Web search: {text}" for text in TEXTS]))
    finally:
        del served.card.sentence_transformers.prompts["web"]


def test_m3_has_all_three_outputs(client, m3):
    expected = m3.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    answer = post(
        client,
        "/v1/embeddings",
        input=TEXTS,
        model="m3",
        return_sparse=True,
        return_colbert_vecs=True,
    )
    close(embeddings(answer), expected["dense_vecs"])
    sparse = post(client, "/m3/embed_sparse", inputs=TEXTS)
    tokens = post(client, "/m3/embed_all", inputs=TEXTS)
    named = [{"data": text, "data_type": "text", "model": "m3"} for text in TEXTS]
    inputs = [
        {**each, "options": {"output": output}}
        for output in ("sparse", "colbert_vecs")
        for each in named
    ]
    inferred = post(client, "/infer", inputs=inputs)["embeddings"]
    for item, weights, vectors in zip(
        answer["data"], inferred[: len(TEXTS)], inferred[len(TEXTS) :], strict=True
    ):
        assert weights["indices"] == item["sparse_embedding"]["indices"]
        close(weights["values"], item["sparse_embedding"]["values"])
        close(vectors, item["colbert_vecs"])
    for item, weights, row, vectors, words in zip(
        answer["data"],
        expected["lexical_weights"],
        sparse,
        expected["colbert_vecs"],
        tokens,
        strict=True,
    ):
        got = item["sparse_embedding"]
        assert got["indices"] == sorted(map(int, weights))
        close(got["values"], [weights[str(index)] for index in got["indices"]])
        assert [each["index"] for each in row] == got["indices"]
        close([each["value"] for each in row], got["values"])
        if len(vectors):
            close(item["colbert_vecs"], vectors)
            close(words, vectors)


def test_one_call_of_qdrant_may_ask_for_several_outputs_of_several_models(client, dense, m3):
    inputs = [
        {"data": "one", "data_type": "text", "model": "dense"},
        {"data": "two", "data_type": "text", "model": "m3", "options": {"output": "sparse"}},
        {"data": "three", "data_type": "text", "model": "m3"},
    ]
    answer = post(client, "/infer", inputs=inputs)
    close(answer["embeddings"][0], dense.encode("one"))
    assert set(answer["embeddings"][1]) == {"indices", "values"}
    close(answer["embeddings"][2], m3.encode("three")["dense_vecs"])
    assert set(answer["usage"]["models"]) == {"dense", "m3"}


def test_a_wrong_input_among_several_of_qdrant_is_named(client):
    inputs = [
        {"data": "one", "data_type": "text", "model": "dense", "options": {"output": "sparse"}},
        {"data": "two", "data_type": "text", "model": "m3"},
    ]
    answer = client.post("/infer", json={"inputs": inputs})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert "no sparse vectors" in answer.json()["error"]


def test_texts_are_cut_on_the_side_that_is_asked_for(dense):
    with TestClient(create_app(dense, max_length=20)) as client:
        long = " ".join(f"word {number}" for number in range(40))
        (right,) = dense.tokenizer.encode([long], max_length=20)
        (left,) = dense.tokenizer.encode([long], max_length=20, keep_end=True)
        assert left[1] != right[1]
        for direction, ids in (("Right", right), ("left", left)):
            answer = client.post(
                "/embed", json={"inputs": [long, "a"], "truncation_direction": direction}
            )
            assert answer.headers["x-truncated-inputs"] == "1"
            expected = client.post("/embed", json={"inputs": [ids.tolist()]}).json()
            close(answer.json()[:1], expected)
        refused = client.post("/embed", json={"inputs": ["a", long], "truncate": False})
        assert refused.status_code == 422
        assert refused.json()["error_type"] == "Validation"
        assert "input 1 has more than 20 tokens" in refused.json()["error"]
        assert client.get("/info").json()["max_input_length"] == 20


def test_tokens_go_to_text_and_back(client, dense):
    text = "several words, ünïcödé"
    (tokens,) = post(client, "/dense/tokenize", inputs=text)
    assert [token["id"] for token in tokens] == dense.tokenizer.encode([text], max_length=512)[
        0
    ].tolist()
    for token in tokens:
        if token["special"]:
            assert token["start"] is None
        else:
            assert token["text"] == text[token["start"] : token["stop"]]
    ids = [token["id"] for token in tokens]
    (decoded,) = post(client, "/dense/decode", ids=ids)
    assert decoded == dense.tokenizer.tokenizer.decode(ids)


def test_ollama_answers_both_of_its_routes(client, dense):
    answer = post(client, "/api/embed", input=TEXTS, model="dense:latest", keep_alive="5m")
    close(answer["embeddings"], dense.encode(TEXTS))
    assert answer["model"] == "dense:latest"
    one = post(client, "/api/embeddings", prompt="a text", model="dense")
    close(one["embedding"], dense.encode("a text"))
    assert post(client, "/api/embed", input=[], model="dense")["embeddings"] == []


def test_models_are_found_by_all_their_names(client):
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["dense", "m3"]
    assert client.get("/v1/models/m3").json()["id"] == "m3"
    unknown = client.post("/v1/embeddings", json={"input": "a", "model": "gpt"})
    assert unknown.status_code == 404
    assert "dense, m3" in unknown.json()["error"]["message"]
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 400
    wrong = client.post("/dense/v1/embeddings", json={"input": "a", "model": "m3"})
    assert wrong.status_code == 404


@pytest.mark.parametrize("kind", ["query", "passage", None])
def test_a_decoder_answers_with_its_instruction(decoder, kind):
    model = FlagLLMModel(
        decoder.bundle, precision="fp32", query_instruction_for_retrieval="Find what answers this"
    )
    encode = {"query": model.encode_queries, "passage": model.encode_corpus, None: model.encode}
    with TestClient(create_app(model)) as client:
        answer = post(client, "/v1/embeddings", input=TEXTS[:3] * 3, input_type=kind)
        close(embeddings(answer), encode[kind](TEXTS[:3] * 3))


def test_a_decoder_with_examples_cannot_keep_the_end_of_a_query(decoder):
    examples = [{"query": "q", "response": "r", "instruct": "i"}]
    model = FlagICLModel(
        decoder.bundle,
        precision="fp32",
        query_instruction_for_retrieval="Find",
        examples_for_task=examples,
    )
    with TestClient(create_app(model)) as client:
        answer = post(client, "/v1/embeddings", input=TEXTS, input_type="query")
        close(embeddings(answer), model.encode_queries(TEXTS))
        refused = client.post(
            "/embed", json={"inputs": "a", "prompt_name": "query", "truncation_direction": "Left"}
        )
        assert refused.status_code == 422


def test_token_ids_are_refused_with_a_hint_unless_allowed(dense):
    (ids,) = dense.tokenizer.encode(["several words"], max_length=512)
    body = {"input": ids.tolist()}
    with TestClient(create_app(dense)) as client:
        refused = client.post("/v1/embeddings", json=body)
        assert refused.status_code == 400
        assert "check_embedding_ctx_length=False" in refused.json()["error"]["message"]
    with TestClient(create_app(dense, ServeOptions(allow_token_ids=True))) as client:
        close(embeddings(post(client, "/v1/embeddings", **body)), [dense.encode("several words")])
        too_large = client.post("/v1/embeddings", json={"input": [[10**6]]})
        assert too_large.status_code == 400


def test_it_can_be_mounted_in_another_application(dense):
    inner = create_app(dense)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with inner.router.lifespan_context(inner):
            yield

    outer = Starlette(routes=[Mount("/embeddings-service", app=inner)], lifespan=lifespan)
    with TestClient(outer) as client:
        close(post(client, "/embeddings-service/embed", inputs=TEXTS), dense.encode(TEXTS))
        assert client.get("/embeddings-service/health").status_code == 200


@pytest.mark.parametrize("name", ["", "v1", "a/b", "a b"])
def test_a_name_must_be_part_of_a_path(dense, name):
    with pytest.raises(ValueError, match="cannot be served"):
        create_app({name: dense, "other": dense})


def test_the_name_of_a_single_model_may_be_a_hub_id(dense):
    with TestClient(create_app({"BAAI/bge-tiny": dense})) as client:
        answer = post(client, "/v1/embeddings", input="a", model="BAAI/bge-tiny")
        assert answer["model"] == "BAAI/bge-tiny"
        assert client.get("/v1/models/BAAI/bge-tiny").json()["id"] == "BAAI/bge-tiny"


def test_there_must_be_a_model():
    with pytest.raises(ValueError, match="no model to serve"):
        create_app({})


def test_what_is_served_is_described(client, dense):
    root = client.get("/").json()
    assert root["models"] == {"dense": "/dense", "m3": "/m3"}
    stats = client.get("/ui/stats").json()
    assert [model["name"] for model in stats["models"]] == ["dense", "m3"]
    described = stats["models"][0]
    assert described["engine"]["precision"] == dense.engine.info.precision == "fp32"
    assert described["parity"]["min_cosine"] > 0.999
    assert described["healthy"] is True
    assert described["source"] is None  # which was a path
    assert stats["models"][1]["outputs"] == ["dense", "sparse", "colbert_vecs"]
    assert [model["name"] for model in client.get("/m3/ui/stats").json()["models"]] == ["m3"]
    meta = client.get("/dense/meta").json()
    assert meta["dim"] == dense.dim
    page = client.get("/ui")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'sha256-" in page.headers["content-security-policy"]


def test_metrics_count_what_was_served(dense):
    with TestClient(create_app(dense)) as client:
        before = _metric(client, "bge_texts_total")
        client.post("/embed", json={"inputs": TEXTS})
        client.post("/embed", json={"inputs": []})
        until_s = time.monotonic() + 30  # a batch is counted after its answers
        while _metric(client, "bge_texts_total") - before < len(TEXTS):
            assert time.monotonic() < until_s
        assert _metric(client, "bge_texts_total") - before == len(TEXTS)
        assert _metric(client, 'bge_requests_total{model="', 'route="/embed",status="200"') == 1
        assert _metric(client, "bge_requests_total", 'status="400"') == 1
        assert _metric(client, "bge_healthy") == 1


def _metric(client, *parts):
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if all(part in line for part in parts) and line[0] != "#"]
    return sum(float(line.rpartition(" ")[2]) for line in found)
