"""From a request to a handler: keys, ids, sizes, deadlines, and what errors look like."""

from __future__ import annotations

import asyncio
import json
import logging

import msgspec
import pytest
from starlette.testclient import TestClient

from bge_runtime import FlagModel
from bge_runtime.serving import ServeOptions, create_app, set_up_logging
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http import Answer, Dialect, Endpoint, Gate
from bge_runtime.serving.metrics import Metrics

KEYS = ("first key", "ключ", "k" * 100)


class Body(msgspec.Struct):
    number: int = 0


def make(handler=None, *, dialect=Dialect.TEI, is_open=False, **options):
    async def echo(body, context):
        return Answer(msgspec.json.encode({"number": body.number, "timeout": context.timeout_s}))

    gate = Gate(ServeOptions(**options), Metrics())
    return Endpoint(
        gate, "/route", handler or echo, body=Body, dialect=dialect, is_open=is_open
    ), gate


def client_of(endpoint):
    return TestClient(endpoint, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    return FlagModel(str(tiny_bundle))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["bearer", "x-api-key", "api-key"])
def test_a_key_is_accepted_in_each_header(key, name):
    client = client_of(make(api_keys=KEYS)[0])
    given = ("authorization", f"bEaReR {key}") if name == "bearer" else (name, key)
    headers = [(given[0].encode(), given[1].encode())]
    assert client.post("/", json={"number": 3}, headers=headers).json()["number"] == 3


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "first key"},
        {"authorization": "Basic first key"},
        {"authorization": "Bearer first key2"},
        {"authorization": "Bearer first"},
        {"authorization": "Bearer " + "k" * 99},
        {"x-api-key": "FIRST KEY"},
        {"x-api-key": ""},
        {"api-key": "wrong", "authorization": "Bearer wrong"},
    ],
)
def test_a_request_without_one_of_the_keys_is_refused(headers):
    client = client_of(make(api_keys=KEYS)[0])
    answer = client.post("/", json={"number": 3}, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error_type"] == "Unauthorized"
    assert not any(key in answer.text for key in KEYS)


def test_open_routes_need_no_key():
    client = client_of(make(api_keys=KEYS, is_open=True)[0])
    assert client.post("/", json={}).status_code == 200


def test_only_probes_and_what_holds_no_data_are_open(tiny):
    app = create_app(tiny, ServeOptions(api_keys=("key",)))
    with TestClient(app) as client:
        document = client.get("/openapi.json").json()
        opened = set()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                answer = client.request(method, path.replace("{id}", "tiny"), json={})
                assert answer.status_code != 500
                if answer.status_code != 401:
                    opened.add(path)
                    assert "security" not in operation
        assert opened == {
            "/health",
            "/.well-known/ready",
            "/.well-known/live",
            "/",
            "/ui",
            "/meta",
        }
        headers = {"authorization": "Bearer key"}
        assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("size", [999, 1000, 1001, 100_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_larger_than_the_limit_is_refused(size, chunked):
    client = client_of(make(max_body_bytes=1000)[0])
    body = b'{"number": 1}'.ljust(size)
    content = (body[start : start + 100] for start in range(0, size, 100)) if chunked else body
    answer = client.post("/", content=content)
    if size <= 1000:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 413
        assert "1,000 bytes" in answer.json()["error"]


def test_a_large_body_is_parsed_like_a_small_one():
    client = client_of(make()[0])
    body = b'{"number": 7, "unknown": "' + b"a" * 300_000 + b'"}'
    assert client.post("/", content=body).json()["number"] == 7
    assert client.post("/", content=body[:-1]).status_code == 422
    deep = b'{"unknown": ' + b"[" * 300_000
    assert client.post("/", content=deep).status_code == 422


def test_numbers_may_be_strings():
    assert client_of(make()[0]).post("/", json={"number": "12"}).json()["number"] == 12


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [("100", 0.1), ("0.5", 0.0005), (".5", 0.0005), ("999999", 7), ("9" * 400, 7)],
)
def test_a_request_may_ask_for_less_time_and_for_no_more(asked, seconds):
    client = client_of(make(request_timeout_s=7)[0])
    answer = client.post("/", json={}, headers={"x-request-timeout-ms": asked})
    assert answer.json()["timeout"] == seconds


@pytest.mark.parametrize("asked", ["0", "0.0", "-1", "1e3", "", "nan", "inf", "1_0", "2 s"])
def test_a_time_that_is_none_is_refused(asked):
    answer = client_of(make(dialect=Dialect.OPENAI)[0]).post(
        "/", json={}, headers={"x-request-timeout-ms": asked}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-request-timeout-ms"


def test_a_request_past_its_deadline_is_counted():
    async def wait(_, context):
        raise context.late()

    endpoint, gate = make(wait)
    assert client_of(endpoint).post("/", json={}).status_code == 504
    assert gate.metrics.registry.get_sample_value("bge_late_requests_total", {"model": ""}) == 1


def test_a_wrong_key_in_the_headers_is_refused_before_the_body_is_read(tiny):
    """Qdrant has its key in the body, so that of others is not parsed for nothing."""
    app = create_app(tiny, ServeOptions(api_keys=("key",)))
    body = {"inputs": [{"data": "a"}], "token": "key"}
    with TestClient(app) as client:
        assert client.post("/infer", json=body).status_code == 200
        assert client.post("/infer", json=body | {"token": "other"}).status_code == 401
        wrong = client.post("/infer", json=body, headers={"x-api-key": "other"})
        assert wrong.status_code == 401
        unread = client.post("/infer", content=b"{", headers={"authorization": "Bearer other"})
        assert unread.status_code == 401


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("kind", Kind)
def test_each_error_has_the_form_of_its_dialect(dialect, kind):
    async def fail(*_):
        raise RequestError(kind, "what is wrong", param="number", headers={"retry-after": "3"})

    answer = client_of(make(fail, dialect=dialect)[0]).post("/", json={})
    assert answer.headers["retry-after"] == "3"
    body = answer.json()
    if dialect is Dialect.OPENAI:
        assert body["error"]["message"] == "what is wrong"
        assert body["error"]["param"] == "number"
        assert body["error"]["code"] == kind.code
        assert answer.status_code == kind.status
    elif dialect is Dialect.COHERE:
        assert body == {"message": "what is wrong"}
    else:
        assert body["error"] == "what is wrong"
        assert set(body) == ({"error", "error_type"} if dialect is Dialect.TEI else {"error"})
    expected = 424 if dialect is Dialect.TEI and kind is Kind.BACKEND else kind.status
    assert answer.status_code // 100 == expected // 100


def test_a_bug_is_500_without_its_message(caplog):
    async def fail(*_):
        raise ZeroDivisionError("internal")

    client = client_of(make(fail)[0])
    answer = client.post("/", json={})
    assert answer.status_code == 500
    assert answer.json() == {
        "error": "the server failed; its log says why",
        "error_type": "Backend",
    }
    assert "internal" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


def test_while_it_stops_only_open_routes_are_answered():
    endpoint, gate = make()
    gate.draining = True
    answer = client_of(endpoint).post("/", json={})
    assert answer.status_code == 503
    assert answer.headers["connection"] == "close"
    opened, gate = make(is_open=True)
    gate.draining = True
    assert client_of(opened).post("/", json={}).status_code == 200


def test_what_is_cancelled_while_it_stops_is_503_and_otherwise_cancelled():
    async def call(draining):
        async def wait(*_):
            await asyncio.sleep(60)

        endpoint, gate = make(wait)
        gate.draining = draining
        endpoint._is_open = True
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"{}"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        task = asyncio.create_task(endpoint(scope, receive, send))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled(), [message.get("status") for message in sent]

    assert asyncio.run(call(True)) == (False, [503, None])
    assert asyncio.run(call(False)) == (True, [])


def test_a_client_that_leaves_while_it_sends_is_counted():
    endpoint, gate = make()

    async def call():
        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            raise AssertionError

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await endpoint(scope, receive, send)

    asyncio.run(call())
    name = "bge_cancelled_requests_total"
    assert gate.metrics.registry.get_sample_value(name, {"model": ""}) == 1


def test_no_page_of_another_origin_may_read_an_answer_by_default(tiny):
    origin = {"origin": "https://example.org"}
    with TestClient(create_app(tiny)) as client:
        for answer in (
            client.get("/health", headers=origin),
            client.post("/embed", json={"inputs": "a"}, headers=origin),
            client.options("/embed", headers={**origin, "access-control-request-method": "POST"}),
        ):
            assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_page_of_a_named_origin_may_read_answers_and_errors(tiny):
    app = create_app(tiny, ServeOptions(cors_origins=("https://example.org",)))
    with TestClient(app) as client:
        for inputs, status in (("a", 200), (5, 422)):
            for origin, allowed in (("https://example.org", True), ("https://other.org", False)):
                answer = client.post("/embed", json={"inputs": inputs}, headers={"origin": origin})
                assert answer.status_code == status
                assert ("access-control-allow-origin" in answer.headers) is allowed
        answer = client.options(
            "/embed",
            headers={
                "origin": "https://example.org",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://example.org"


def test_errors_at_the_paths_of_several_models(tiny):
    with TestClient(create_app({"a": tiny, "b": tiny})) as client:
        inputs = {"inputs": "text"}
        for path in ("/a", "/a/", "/a/embed", "/b/embed"):
            assert len(client.post(path, json=inputs).json()) == 1
        # At the root are the routes that name a model.
        missing = client.post("/embed", json=inputs)
        assert missing.status_code == 404
        assert missing.json()["error_type"] == "NotFound"
        unnamed = client.post("/v1/embeddings", json={"input": "text"})
        assert unnamed.status_code == 400
        assert "a, b" in unnamed.json()["error"]["message"]
        other = client.post("/a/v1/embeddings", json={"input": "text", "model": "b"})
        assert other.status_code == 404
        assert other.json()["error"]["code"] == "not_found"
        assert client.post("/c/v1/embeddings", json={}).json()["error"]["code"] == "not_found"
        assert client.post("/c/embed", json=inputs).json()["error_type"] == "NotFound"
        assert client.post("/a/vectors", json={}).json()["error"] == "send either text or texts"
        assert client.post("/", json=inputs).status_code == 405
        assert client.get("/a").status_code == 405
        assert client.get("/").json()["models"] == {"a": "/a", "b": "/b"}
        for path in ("/health", "/a/health", "/b/.well-known/ready"):
            assert client.get(path).json() == {"status": "ok"}


def test_what_is_refused_is_counted_for_the_model_of_its_path(tiny):
    with TestClient(app := create_app({"a": tiny, "b": tiny})) as client:
        count = app.state.gate.metrics.registry.get_sample_value
        client.post("/a/embed", content=b"{")
        client.post("/v1/embeddings", json={"input": "text", "model": "c"})
        client.get("/a/health")
        for model, route, status in (
            ("a", "/a/embed", "422"),
            ("", "/v1/embeddings", "404"),
            ("", "/a/health", "200"),
        ):
            labels = {"model": model, "route": route, "status": status}
            assert count("bge_requests_total", labels) == 1


def test_a_path_without_a_route_is_answered_logged_and_counted_as_others_are(tiny, log):
    set_up_logging(level="info", as_json=False)
    with TestClient(app := create_app(tiny)) as client:
        count = app.state.gate.metrics.registry.get_sample_value
        for method, path, status in (("GET", "/nothing", 404), ("PUT", "/embed", 405)):
            answer = client.request(method, path, headers={"x-request-id": "mine"})
            assert answer.status_code == status
            assert answer.headers["x-request-id"] == "mine"
            labels = {"model": "", "route": "unknown", "status": str(status)}
            assert count("bge_requests_total", labels) == 1
        assert answer.headers["allow"] == "POST"
    assert "route=unknown status=405" in log()


@pytest.fixture
def log(capsys):
    """A function that returns what is written to standard error."""
    before = logging.getLogger().handlers[:], logging.getLogger().level
    ours = logging.getLogger("bge_runtime").level
    yield lambda: capsys.readouterr().err
    logging.captureWarnings(False)
    logging.getLogger().handlers[:], logging.getLogger().level = before
    logging.getLogger("bge_runtime").setLevel(ours)


def test_each_request_is_a_line_of_json_without_its_texts(tiny, log):
    set_up_logging(level="info", as_json=True)
    secret = "xyzzy\nplugh"
    with TestClient(create_app(tiny)) as client:
        client.post("/embed", json={"inputs": [secret] * 2}, headers={"x-request-id": "mine"})
        client.post("/v1/embeddings", json={"input": secret, "model": secret})
        client.post("/embed", json={"inputs": secret, "prompt_name": secret})
        client.post("/embed", content=secret.encode())
        client.get("/xyzzy")
    written = log()
    lines = [json.loads(line) for line in written.splitlines()]
    requests = [line for line in lines if "route" in line]
    assert [line["status"] for line in requests] == [200, 404, 422, 422, 404]
    codes = ["not_found", "invalid_request", "invalid_request", "not_found"]
    assert [line.get("error") for line in requests] == [None, *codes]
    assert requests[4]["route"] == "unknown"
    assert requests[0]["request_id"] == "mine"
    assert requests[0]["texts"] == 2
    assert requests[0]["tokens"] > 4
    assert requests[0]["model"] == "tiny"
    assert {"total_ms", "tokenize_ms", "queue_ms", "inference_ms"} <= set(requests[0])
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    assert "xyzzy" not in written
    assert "plugh" not in written


def test_a_log_of_errors_has_no_requests(tiny, log):
    set_up_logging(level="error", as_json=False)
    with TestClient(create_app(tiny)) as client:
        client.post("/embed", json={"inputs": "a"})
    assert log() == ""
