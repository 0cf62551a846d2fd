"""Thousands of random requests: each gets its route's own answer, and the server serves on."""

from __future__ import annotations

import collections
import json
import threading
import time

import httpx
import psutil
import pytest

from tests.helpers.hostile import RAW, SHORT_TIMES, HostileRequests
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.servers import running_server

jsonschema = pytest.importorskip("jsonschema")

OPENAI_TYPES = {
    "invalid_request_error",
    "rate_limit_error",
    "server_error",
    "timeout_error",
    "authentication_error",
}

TEI_TYPES = {"Validation", "Empty", "NotFound", "Backend", "Overloaded", "Unhealthy", "Timeout"}

TEI = ("/embed", "/embed_sparse", "/embed_all", "/tokenize", "/decode", "/info", "/")

PATHS = {
    "m3": ["/embed", "/v1/embeddings", "/api/embed", "/vectors", "/infer"],
    "reranker": ["/rerank", "/v1/rerank", "/v2/rerank", "/"],
}
"""Routes with a body, of a server of each kind of model."""


@pytest.fixture(scope="module", params=PATHS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def server(kind, tiny_m3_bundle):
    bundle = tiny_m3_bundle if kind == "m3" else reranker_bundle(targets=("cpu",))
    options = ("--max-inputs", "100", "--allow-token-ids", "--engine", "onnxruntime")
    with running_server(bundle, *options) as server:
        server.reranks = kind == "reranker"
        yield server


@pytest.fixture(scope="module")
def document(server):
    return server.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def validators(document):
    """A function that returns what checks the answer of an operation, or None."""
    found = {}

    def validator(operation):
        name = operation["operationId"]
        if name not in found:
            content = operation["responses"]["200"].get("content")
            schema = content and content["application/json"]["schema"]
            # References are to the document's components.
            found[name] = schema and jsonschema.Draft202012Validator(
                {**schema, "components": document["components"]}
            )
        return found[name]

    return validator


def check_error(path, status, body, *, reranks):
    """Check that an error has the form of its route."""
    path = path.rstrip("/") or "/"
    if path.endswith("/rerank") or (reranks and path == "/"):  # the body says which form
        assert set(body) in ({"message"}, {"error"}, {"error", "error_type"})
        assert all(isinstance(value, str) and value for value in body.values())
        assert body.get("error_type", "Empty") in TEI_TYPES
        return
    if "/v1/" in path or path == "/embeddings":
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["type"] in OPENAI_TYPES
        return
    assert isinstance(body["error"], str)
    assert body["error"]
    if path in TEI:
        assert body["error_type"] in TEI_TYPES
        assert status != 400 or body["error_type"] == "Empty"


def check_answer(request, answer, validator, *, reranks):
    status = answer.status_code
    assert status in (200, 400, 404, 405, 413, 422, 424, 429, 504), answer.text[:500]
    assert status != 504 or request.headers.get("x-request-timeout-ms") in SHORT_TIMES
    assert len(answer.headers["x-request-id"]) <= 128 if "x-request-id" in answer.headers else True
    if status >= 400:
        check_error(request.path, status, answer.json(), reranks=reranks)
        assert request.operation is None or status != 405
        return
    assert request.operation is not None
    checker = validator(request.operation)
    if checker is not None:
        error = next(iter(checker.iter_errors(answer.json())), None)
        assert error is None, f"{error.message[:300]} at {error.json_path}"


def send_all(server, document, validators, count, *, seed, threads=4):
    """Send random requests from some threads; return their statuses."""
    statuses = collections.Counter()
    routes = collections.defaultdict(set)
    failures = []
    lock = threading.Lock()

    def work(number):
        requests = HostileRequests(document, seed=seed + number)
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for _ in range(count // threads):
                request = requests.make()
                try:
                    answer = client.request(
                        request.method,
                        request.path,
                        content=request.content,
                        headers=request.headers,
                    )
                    check_answer(request, answer, validators, reranks=server.reranks)
                except Exception as error:  # noqa: BLE001  # reported with its request
                    failures.append((request, repr(error)))
                    if len(failures) > 5:
                        return
                    continue
                with lock:
                    statuses[answer.status_code] += 1
                    if request.operation is not None:
                        routes[request.method, request.path].add(answer.status_code)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for request, error in failures[:3]:
        shown = (request.content or b"")[:600]
        print(f"{request.method} {request.path} {request.headers} {shown!r}\n -> {error}")
    assert not failures
    return statuses, routes


def check_serves_on(server):
    assert server.process.poll() is None
    assert server.client.get("/health").status_code == 200
    if server.reranks:
        answer = server.client.post("/rerank", json={"query": "q", "texts": ["a", "b"]})
        assert len(answer.json()) == 2
    else:
        answer = server.client.post("/v1/embeddings", json={"input": ["a", "b"]})
        assert len(answer.json()["data"]) == 2
    assert "Traceback" not in server.log
    lines = server.client.get("/metrics").text.splitlines()
    queued = [line for line in lines if line.startswith("bge_queued_tokens{")]
    assert [float(line.split()[-1]) for line in queued] == [0, 0]


def test_a_thousand_random_requests_get_their_own_answers(server, document, validators):
    statuses, routes = send_all(server, document, validators, 1200, seed=0)
    assert statuses[200] > 100, statuses
    assert statuses[400] + statuses[422] > 100, statuses
    assert all(statuses[status] for status in (404, 405)), statuses
    check_serves_on(server)
    assert len(routes) > (15 if server.reranks else 20)


@pytest.mark.slow
def test_ten_thousand_random_requests_leave_the_server_as_it_was(server, document, validators):
    process = psutil.Process(server.process.pid)
    send_all(server, document, validators, 1000, seed=1000)
    before = process.memory_info().rss, process.num_threads()
    started_s = time.monotonic()
    statuses, _ = send_all(server, document, validators, 10_000, seed=2000)
    took_s = time.monotonic() - started_s
    after = process.memory_info().rss, process.num_threads()
    print(f"{took_s:.0f} s, {dict(sorted(statuses.items()))}, before {before}, after {after}")
    check_serves_on(server)
    assert after[0] < 1.1 * before[0] + 20_000_000
    assert after[1] <= before[1] + 4


def test_bodies_that_are_no_request_are_refused(server, kind):
    for path in PATHS[kind]:
        for raw in RAW:
            answer = server.client.post(path, content=raw)
            assert answer.status_code in (200, 400, 413, 422), (path, raw[:80], answer.text[:300])
            if answer.status_code != 200:
                check_error(path, answer.status_code, answer.json(), reranks=server.reranks)


def test_a_valid_request_to_every_route_is_answered_as_documented(server, document, validators):
    """The random ones reach every route, but not all of them with success."""
    texts = ["a text", "and another"]
    common = {
        "TokenizeRequest": [{"inputs": texts}],
        "DecodeRequest": [{"ids": [[5, 6], [7]]}, {"ids": [5, 6]}],
    }
    of_rerankers = {
        "RerankRequest": [
            {"query": "q", "texts": texts, "return_text": True},
            {"query": "q", "documents": texts, "model": None, "return_documents": "true"},
            {"query": "q", "documents": [{"text": "a", "n": 1}], "return_documents": True},
            {"query": "q", "documents": texts, "property": ""},
            {"query": "q", "property": "a"},
        ],
    }
    of_embedders = {
        "EmbeddingsRequest": [
            {"input": texts, "return_sparse": True, "return_colbert_vecs": True},
            {"input": "a", "encoding_format": "base64", "dimensions": 16},
            {"input": [5, 6, 7]},
        ],
        "EmbedRequest": [{"inputs": texts}, {"inputs": "a", "normalize": False}],
        "OllamaRequest": [{"input": texts, "keep_alive": "5m", "options": {"a": 1}}, {"input": []}],
        "OllamaPromptRequest": [{"prompt": "a"}],
        "VectorRequest": [
            {"text": "a", "config": {"task_type": "query", "dimensions": 0}},
            {"texts": texts},
        ],
        "InferenceRequest": [
            {
                "inputs": [
                    {"data": "a", "data_type": "text", "model": "", "options": {"output": output}}
                    for output in ("dense", "sparse", "colbert_vecs")
                ],
                "inference": "search",
            }
        ],
    }
    bodies = {**common, **(of_rerankers if server.reranks else of_embedders)}
    seen = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                (content,) = operation["requestBody"]["content"].values()
                name = content["schema"]["$ref"].rpartition("/")[2]
                seen.add(name)
                sent = [json.dumps(body).encode() for body in bodies[name]]
            else:
                sent = [None]
            name = server.client.get("/v1/models").json()["data"][0]["id"]
            for content in sent:
                answer = server.client.request(method, path.replace("{id}", name), content=content)
                assert answer.status_code == 200, (path, answer.text)
                checker = validators(operation)
                if checker is not None:
                    checker.validate(answer.json())
    assert seen == set(bodies)


def test_the_document_is_complete(document):
    assert document["openapi"].startswith("3.1")
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(names)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    references = set()

    def collect(value):
        if isinstance(value, dict):
            if "$ref" in value:
                references.add(value["$ref"])
            for each in value.values():
                collect(each)
        elif isinstance(value, list):
            for each in value:
                collect(each)

    collect(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references <= known
