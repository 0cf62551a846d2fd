"""Engines that raise, hang, run out of memory or are too slow, and clients that leave."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.helpers.faulty_server import MARKS, REOPEN_S, faulty_server
from tests.helpers.raw_http import wait_until

QUERIES, BULK = 'bge_queued_tokens{lane="query"}', 'bge_queued_tokens{lane="bulk"}'


@pytest.fixture(scope="module")
def faulty(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    options = ("--engine-timeout", "1", "--threads", "2", "--slice-ms", "50")
    with faulty_server(tiny_bundle, folder, *options) as faulty:
        yield faulty
        assert "Traceback" not in faulty.server.log


@pytest.fixture
def client(faulty):
    client = faulty.server.client
    wait_until(lambda: client.get("/health").status_code == 200)
    yield client
    for name in ("hang", "slow", "broken", "crash", "memory"):
        (faulty.folder / name).unlink(missing_ok=True)


def embed(client, inputs, **headers):
    given = {name.replace("_", "-"): str(value) for name, value in headers.items()}
    return client.post("/embed", json={"inputs": inputs}, headers=given)


def together(client, requests):
    """Send requests at the same time; return their answers."""
    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(lambda inputs: embed(client, inputs), requests))


@pytest.mark.parametrize(("fault", "message"), [("raise", "does not like"), ("nan", "has NaN")])
def test_a_text_fails_its_own_request_only(faulty, client, fault, message):
    # A first batch keeps the engine busy, so that the others are in one batch behind it.
    with faulty.switched("slow", 0.002):
        good = [[f"text {number}", "and more"] for number in range(8)]
        bad = ["a text", f"a {MARKS[fault]} text"]
        answers = together(client, [["first"], *good[:4], bad, *good[4:]])
    failed = answers.pop(5)
    assert failed.status_code == 424
    assert failed.json()["error_type"] == "Backend"
    assert message in failed.json()["error"]
    assert [answer.status_code for answer in answers] == [200] * 9
    assert client.get("/health").status_code == 200


def test_without_memory_batches_are_halved_and_only_what_never_fits_fails(faulty, client):
    with faulty.switched("memory"):
        answer = embed(client, ["a text"] * 30)
        assert answer.status_code == 200
        assert len(answer.json()) == 30
        answers = together(client, [["one"], ["a", MARKS["memory"]], ["two"] * 10])
    assert [answer.status_code for answer in answers] == [200, 424, 200]
    assert client.get("/health").status_code == 200


def test_a_crashed_engine_is_opened_again_and_nobody_notices(faulty, client):
    time.sleep(REOPEN_S)
    before = faulty.server.log.count("opening the engines again")
    with faulty.switched("crash"):
        answer = embed(client, ["a text"])
    assert answer.status_code == 200
    assert faulty.server.log.count("opening the engines again") == before + 1


def test_a_broken_engine_is_told_by_health_until_it_works(faulty, client):
    time.sleep(REOPEN_S)
    before = faulty.server.log.count("opening the engines again")
    with faulty.switched("broken"):
        for _ in range(3):
            answer = embed(client, ["a text"])
            assert answer.status_code == 424
            assert "the engine is broken" in answer.json()["error"]
        health = client.get("/health")
        assert health.status_code == 503
        assert "the engine is broken" in health.json()["error"]
        assert client.get("/.well-known/live").status_code == 200
        assert faulty.metric('bge_healthy{model="tiny"}') == 0
        (model,) = client.get("/ui/stats").json()["models"]
        assert not model["healthy"]
    assert faulty.server.log.count("opening the engines again") == before + 1
    assert client.get("/health").status_code == 200
    assert embed(client, ["a text"]).status_code == 200


def test_an_engine_that_hangs_fails_its_batch_and_is_told_by_health(faulty, client):
    with faulty.switched("hang"):
        started_s = time.monotonic()
        answer = embed(client, ["a text"])
        assert answer.status_code == 503
        assert "has not answered for" in answer.json()["error"]
        assert answer.headers["retry-after"]
        assert 0.9 < time.monotonic() - started_s < 4
        started_s = time.monotonic()
        assert client.get("/health").status_code == 503
        assert embed(client, ["another"]).status_code == 503  # it does not wait, too
        assert time.monotonic() - started_s < 1
        assert client.get("/.well-known/live").status_code == 200
        time.sleep(2)
    wait_until(lambda: embed(client, ["a text"]).status_code == 200)
    assert client.get("/health").status_code == 200


def test_a_deadline_is_kept_and_what_waited_costs_no_work(faulty, client):
    with faulty.switched("hang"), ThreadPoolExecutor(2) as threads:
        runs = len(faulty.runs)
        first = [threads.submit(embed, client, ["the first"]) for _ in range(2)]
        wait_until(lambda: len(faulty.runs) > runs)
        time.sleep(0.05)
        running = len(faulty.runs)
        started_s = time.monotonic()
        late = embed(client, ["a text of some more words"], x_request_timeout_ms=100)
        took_s = time.monotonic() - started_s
        (faulty.folder / "hang").unlink()
        assert [answer.result().status_code for answer in first] == [200, 200]
    assert late.status_code == 504
    assert late.json()["error_type"] == "Timeout"
    assert 0.1 <= took_s < 0.6
    assert faulty.metric(QUERIES) == 0
    assert len(faulty.runs) <= running + 1  # at most the second of the first two


def test_a_deadline_that_has_passed_already_costs_no_work(faulty, client):
    runs = len(faulty.runs)
    for inputs in (["a text"], ["a text"] * 1000):
        assert embed(client, inputs, x_request_timeout_ms=0.001).status_code == 504
    assert len(faulty.runs) == runs


KILLED = """
import sys, httpx
texts = ["words that take their time " * 4] * 1500
httpx.post(sys.argv[1] + "/embed", json={"inputs": texts}, timeout=100)
"""


def test_a_client_that_is_killed_frees_its_place_in_the_queue(faulty, client):
    with faulty.switched("slow", 0.0005):
        process = subprocess.Popen([sys.executable, "-c", KILLED, faulty.server.url])
        wait_until(lambda: faulty.metric(BULK) > 10_000)
        process.send_signal(signal.SIGKILL)
        process.wait()
        started_s = time.monotonic()
        wait_until(lambda: faulty.metric(BULK) == 0)
        assert time.monotonic() - started_s < 3
        wait_until(lambda: not faulty.metric("bge_running_batches"))
        runs = len(faulty.runs)
        time.sleep(0.3)
        assert len(faulty.runs) == runs
    assert faulty.metric('bge_cancelled_requests_total{model="tiny"}') >= 1


def test_queries_do_not_wait_for_bulk_work_and_it_goes_on(faulty, client):
    """While a bulk request takes seconds, a query takes about a slice."""
    texts = ["words that take their time " * 4] * 600
    with faulty.switched("slow", 0.0002), ThreadPoolExecutor(4) as threads:
        client.post("/embed", json={"inputs": texts[:50]})  # its speed is measured
        started_s = time.monotonic()
        bulk = threads.submit(client.post, "/embed", json={"inputs": texts})
        wait_until(lambda: faulty.metric(BULK) > 1000)
        took = []
        while not bulk.done():
            sent_s = time.monotonic()
            assert embed(client, ["a query"]).status_code == 200
            took.append(time.monotonic() - sent_s)
        bulk_s = time.monotonic() - started_s
    assert bulk.result().status_code == 200
    assert bulk_s > 0.5
    assert sorted(took)[len(took) // 2] < 0.5 * bulk_s
    assert max(took) < 1


def test_bulk_work_does_not_wait_for_queries_for_ever(faulty, client):
    stop = threading.Event()
    answers = []

    def ask():
        with httpx.Client(base_url=faulty.server.url, timeout=30) as own:
            while not stop.is_set():
                answers.append(embed(own, ["a query of a few words"] * 20).status_code)

    with faulty.switched("slow", 0.0005), ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(ask) for _ in range(6)]
        time.sleep(0.3)
        answer = client.post("/embed", json={"inputs": ["bulk work " * 20] * 10})
        stop.set()
        for each in asking:
            each.result()
    assert answer.status_code == 200
    assert float(answer.headers["x-queue-time"]) < 3000
    assert set(answers) <= {200}


@pytest.fixture(scope="module")
def small(tiny_bundle, tmp_path_factory):
    """A server whose queues hold 2,000 tokens each."""
    folder = tmp_path_factory.mktemp("small")
    options = ("--max-queued-tokens", "2000", "--threads", "1", "--no-parallel-batches")
    with faulty_server(tiny_bundle, folder, *options) as small:
        yield small


def test_a_request_larger_than_the_queue_is_split_and_not_refused(small):
    client = small.server.client
    texts = ["several words that are more than a few"] * 1000
    answer = client.post("/embed", json={"inputs": texts})
    assert answer.status_code == 200
    assert len(answer.json()) == 1000
    assert sum(rows for rows, _ in small.runs) >= 1000


def test_a_full_queue_is_429_and_retry_after_is_about_right(small):
    client = small.server.client
    texts = ["several words that are more than a few"] * 120
    with small.switched("slow", 0.002), ThreadPoolExecutor(8) as threads:
        client.post("/embed", json={"inputs": texts[:60]})  # its speed is measured
        client.post("/embed", json={"inputs": texts[:60]})
        waiting = []
        refused = None
        while refused is None:
            sent = threads.submit(client.post, "/embed", json={"inputs": texts})
            time.sleep(0.2)
            if sent.done() and sent.result().status_code == 429:
                refused = sent.result()
            else:
                waiting.append(sent)
        refused_s, queued = time.monotonic(), small.metric(BULK)
        wait_s = int(refused.headers["retry-after"])
        assert refused.json()["error_type"] == "Overloaded"
        assert f"Try again in {wait_s} s" in refused.json()["error"]
        # The queue is empty about then.
        wait_until(lambda: small.metric(BULK) == 0, timeout_s=60)
        empty_s = time.monotonic() - refused_s
        assert all(sent.result().status_code == 200 for sent in waiting)
    print(f"{queued:.0f} tokens waited, Retry-After {wait_s} s, empty after {empty_s:.1f} s")
    assert 0.4 * empty_s - 1 < wait_s < 2.5 * empty_s + 1
    assert client.post("/embed", json={"inputs": texts}).status_code == 200
    assert small.metric('bge_rejected_requests_total{model="tiny"}') >= 1
    assert math.isfinite(empty_s)


def test_other_dialects_tell_the_same_in_their_own_form(small):
    client = small.server.client
    text = f"a {MARKS['nan']} text"
    answer = client.post("/v1/embeddings", json={"input": text})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.json()["error"]["code"] == "inference_failed"
    for path, body in (
        ("/api/embed", {"input": text}),
        ("/vectors", {"text": text}),
        ("/infer", {"inputs": [{"data": text}]}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 500
        assert "NaN" in answer.json()["error"]
        late = client.post(path, json=body, headers={"x-request-timeout-ms": "0.001"})
        assert late.status_code == 504
        assert "no answer within 1e-06 s" in late.json()["error"]
    assert "Traceback" not in small.server.log


def test_a_secret_text_is_in_no_log(small):
    client, secret = small.server.client, "xyzzy"
    for body in (
        {"inputs": secret},
        {"inputs": f"{secret} {MARKS['nan']}"},
        {"inputs": f"{secret} {MARKS['raise']}"},
        {"inputs": [secret, 5]},
        {"inputs": {secret: secret}},
        {"inputs": "a", "prompt_name": secret},
        {"inputs": f"{secret} " * 600, "truncate": False},
    ):
        client.post("/embed", json=body)
        client.post("/v1/embeddings", json={"input": body["inputs"]})
        client.post("/tokenize", json=body)
    client.post("/embed", content=b'{"inputs": "xyzzy \\ud800"}')
    client.post("/embed", content=b'{"inputs": "xyzzy')
    client.get(f"/{secret}?{secret}")
    time.sleep(0.2)
    assert "failed" in small.server.log
    assert secret not in small.server.log
