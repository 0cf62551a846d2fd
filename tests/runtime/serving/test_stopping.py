"""SIGTERM: what was accepted is answered, nothing is cut, and it ends in time with status 0."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter

import httpx
import pytest

from tests.helpers.faulty_server import faulty_server
from tests.helpers.raw_http import connection, get, post, wait_until
from tests.helpers.servers import running_server


def stop(server, number=signal.SIGTERM, *, within_s=20.0):
    """Send a signal; return the exit status and the seconds that it took."""
    started_s = time.monotonic()
    server.process.send_signal(number)
    status = server.process.wait(timeout=within_s)
    return status, time.monotonic() - started_s


class Load:
    """Clients that send requests one after the other, each on a connection until that is closed.

    With ``reconnect`` they open another one then.
    """

    def __init__(self, url, count, body, *headers, reconnect=False):
        self._reconnect = reconnect
        self.statuses, self.cut, self.sent = Counter(), [], 0
        self._url, self._data = url, post("/embed", json.dumps(body), *headers)
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self):
        try:
            first = True
            while first or self._reconnect:
                first = False
                with connection(self._url, timeout_s=30) as opened:
                    self._use(opened)
        except ConnectionRefusedError:
            return
        except (AssertionError, OSError) as error:  # closed in the middle, or without an answer
            self.cut.append(repr(error))

    def _use(self, opened):
        while True:
            try:
                opened.socket.sendall(self._data)
            except OSError:  # it was closed before all of the request was sent
                return
            reply = opened.reply()
            if reply is None:
                with self._lock:
                    self.cut.append("no answer")
                return
            with self._lock:
                self.statuses[reply.status] += 1
            if reply.status == 200:
                assert len(reply.json) == 3
            if reply.headers.get("connection") == "close":
                return

    def join(self):
        for thread in self._threads:
            thread.join(30)


@pytest.mark.parametrize("slow", [0.0, 0.002])
def test_no_request_is_lost_when_it_is_told_to_stop_under_load(tiny_bundle, tmp_path, slow):
    with faulty_server(tiny_bundle, tmp_path) as faulty, faulty.switched("slow", slow):
        load = Load(faulty.server.url, 24, {"inputs": ["a", "few", "texts"]})
        wait_until(lambda: load.statuses[200] > 100)
        status, took_s = stop(faulty.server)
        load.join()
    assert status == 0
    assert took_s < 8
    assert not load.cut
    assert set(load.statuses) <= {200, 503}
    assert "Traceback" not in faulty.server.log


def test_connections_that_were_not_accepted_yet_are_answered_as_well(tiny_bundle):
    """The system accepts connections for a server, which asks for them later."""
    with running_server(tiny_bundle) as server:
        load = Load(
            server.url, 16, {"inputs": ["a", "few", "texts"]}, "Connection: close", reconnect=True
        )
        wait_until(lambda: load.statuses[200] > 100)
        status, took_s = stop(server)
        load.join()
    assert status == 0
    assert took_s < 4
    assert set(load.statuses) <= {200, 503}
    # Closed at once, a server lost about as many requests as there were clients. One connection
    # may always come between the last look and the end.
    assert len(load.cut) <= 2, load.cut


def test_a_request_that_takes_seconds_is_answered_before_it_ends(tiny_bundle, tmp_path):
    with faulty_server(tiny_bundle, tmp_path) as faulty, faulty.switched("slow", 0.2):
        url = faulty.server.url
        with connection(url) as busy, connection(url) as idle:
            idle.send(get("/health"))
            assert idle.reply().status == 200
            busy.send(post("/embed", '{"inputs": "seven tokens take more than a second"}'))
            wait_until(lambda: faulty.metric("bge_running_batches") == 1)
            faulty.server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            idle.send(post("/embed", '{"inputs": "too late"}'))
            refused = idle.reply()
            assert refused.status == 503
            assert refused.json["error_type"] == "Unhealthy"
            assert refused.headers["connection"] == "close"
            answer = busy.reply()
            assert answer.status == 200
            assert answer.headers["connection"] == "close"
            with pytest.raises(OSError, match="refused"):
                connection(faulty.server.url).__enter__()
        assert faulty.server.process.wait(10) == 0


def test_a_request_longer_than_the_drain_timeout_gets_503(tiny_bundle, tmp_path):
    options = ("--drain-timeout", "1")
    with faulty_server(tiny_bundle, tmp_path, *options) as faulty, faulty.switched("hang"):  # noqa: SIM117
        with connection(faulty.server.url) as busy, connection(faulty.server.url) as openai:
            busy.send(post("/embed", '{"inputs": "a text"}'))
            openai.send(post("/v1/embeddings", '{"input": "a text"}'))
            wait_until(lambda: faulty.metric("bge_running_batches") >= 1)
            status, took_s = stop(faulty.server)
            answer, other = busy.reply(), openai.reply()
    assert status == 0
    assert took_s < 4  # the timeout, and a second for an engine that hangs
    assert answer.status == other.status == 503
    assert answer.json == {"error": "the server has stopped", "error_type": "Unhealthy"}
    assert other.json["error"]["code"] == "service_unavailable"
    assert "Traceback" not in faulty.server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tiny_bundle, tmp_path, number):
    with faulty_server(tiny_bundle, tmp_path) as faulty, faulty.switched("hang"):  # noqa: SIM117
        with connection(faulty.server.url) as busy:
            busy.send(post("/embed", '{"inputs": "a text"}'))
            wait_until(lambda: faulty.metric("bge_running_batches") == 1)
            faulty.server.process.send_signal(number)
            time.sleep(0.7)
            assert faulty.server.process.poll() is None
            status, took_s = stop(faulty.server, number)
            answer = busy.reply()
    assert status == 0
    assert took_s < 3
    assert answer is None or answer.status == 503
    assert "Traceback" not in faulty.server.log


def test_connections_without_a_request_do_not_delay_the_end(tiny_bundle):
    with running_server(tiny_bundle) as server:
        with (
            connection(server.url),
            connection(server.url) as begun,
            connection(server.url) as body,
        ):
            begun.send(b"POST /embed HTTP/1.1\r\nHost: te")
            time.sleep(0.2)
            status, took_s = stop(server)
            assert status == 0
            assert took_s < 2
            assert body.is_closed(within_s=1)
        assert "stopping" in server.log


def test_a_body_that_is_still_sent_is_waited_for(tiny_bundle):
    with running_server(tiny_bundle, "--drain-timeout", "5") as server:
        data = post("/embed", '{"inputs": "a text"}')
        with connection(server.url) as opened:
            opened.send(data[:-5])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.7)
            opened.send(data[-5:])
            assert opened.reply().status in (200, 503)
        assert server.process.wait(10) == 0


def test_health_is_503_while_it_drains(tiny_bundle, tmp_path):
    with faulty_server(tiny_bundle, tmp_path) as faulty, faulty.switched("slow", 0.2):
        with connection(faulty.server.url) as busy, httpx.Client(base_url=faulty.server.url) as own:
            assert own.get("/health").status_code == 200
            busy.send(post("/embed", '{"inputs": "seven tokens take more than a second"}'))
            wait_until(lambda: faulty.metric("bge_running_batches") == 1)
            faulty.server.process.send_signal(signal.SIGTERM)
            time.sleep(0.15)
            assert own.get("/health").status_code == 503
            assert busy.reply().status == 200
        assert faulty.server.process.wait(10) == 0


def test_it_says_why_it_cannot_start(tiny_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1, port {port}"),
            running_server(tiny_bundle, "--port", port),
        ):
            pass


def test_a_signal_while_it_starts_ends_it(tiny_bundle):
    program = """
import os, signal, threading
from bge_runtime.serving.models import ServedModel
start = ServedModel.start
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    start(*arguments)
ServedModel.start = interrupted
from bge_runtime.cli.serve import main
main()
"""
    with running_server(tiny_bundle, program=program) as server:
        assert server.process.wait(20) == 0
