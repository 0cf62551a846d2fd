"""HTTP below the routes: malformed, slow and endless requests, over raw sockets."""

from __future__ import annotations

import json
import socket
import time

import psutil
import pytest

from tests.helpers.raw_http import connection, get, post, wait_until
from tests.helpers.servers import running_server

SHORT_TIMES = """
import dataclasses
from bge_runtime.serving.http import endpoint, protocol
protocol.HEADER_TIMEOUT_S = 1.0
protocol.LINGER_S = 1.0
protocol.READ_TIMEOUT_S = 1.0
original = endpoint.Gate.__init__
def start(self, options, metrics):
    original(self, dataclasses.replace(options, body_timeout_s=1.5), metrics)
endpoint.Gate.__init__ = start
from bge_runtime.cli.serve import main
main()
"""

BODY = '{"inputs": "a text"}'


@pytest.fixture(scope="module")
def server(tiny_bundle):
    with running_server(tiny_bundle, "--max-body-mb", "20", program=SHORT_TIMES) as server:
        yield server
        assert server.client.get("/health").status_code == 200
        assert "Traceback" not in server.log


def one(server, data, *, head=False):
    """Send bytes on a connection of their own, and return the answer."""
    with connection(server.url) as opened:
        opened.send(data)
        return opened.reply(head=head)


def test_a_request_by_hand(server):
    reply = one(server, post("/embed", BODY))
    assert reply.status == 200
    assert len(reply.json) == 1


def test_headers_that_are_too_large_are_refused(server):
    for data in (
        b"GET /health HTTP/1.1\r\nHost: test\r\nX-A: " + b"a" * 100_000,
        b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000,
        b"GET /" + b"a" * 100_000,
    ):
        reply = one(server, data)
        assert reply.status == 431
        assert reply.json == {"error": "the headers are too large"}
        assert reply.headers["connection"] == "close"


def test_headers_without_end_keep_no_connection(server):
    with connection(server.url) as opened:
        opened.send(b"GET /health HTTP/1.1\r\n")
        started_s = time.monotonic()
        while time.monotonic() - started_s < 3:
            opened.send(b"X-A: b\r\n")
            time.sleep(0.1)
        reply = opened.reply()
        assert reply.status == 408
        assert opened.is_closed(within_s=1)


def test_a_connection_without_a_request_is_closed_without_an_answer(server):
    """What is sent would be taken for the answer to a request that comes at the same time."""
    with connection(server.url) as opened:
        assert opened.is_closed(within_s=3)


def test_a_line_break_after_a_request_is_no_request(server):
    with connection(server.url) as opened:
        opened.send(post("/embed", BODY) + b"\r\n")
        assert opened.reply().status == 200
        opened.send(b"\r\n")
        time.sleep(0.1)
        opened.send(post("/embed", BODY))
        assert opened.reply().status == 200
        opened.send(b"\r\n")
        assert opened.is_closed(within_s=3)


def test_a_body_that_does_not_arrive_is_given_up(server):
    reply = one(server, post("/embed", BODY, length=1000))
    assert reply.status == 408
    assert reply.json["error_type"] == "Validation"
    assert reply.headers["connection"] == "close"


def test_a_slow_body_within_the_time_is_read(server):
    with connection(server.url) as opened:
        data = post("/embed", BODY)
        for start in range(0, len(data), 16):
            opened.send(data[start : start + 16])
            time.sleep(0.05)
        assert opened.reply().status == 200


def test_half_closed_connections_are_closed(server):
    for data in (b"", b"POST /embed HTTP/1.1\r\n", post("/embed", BODY, length=1000)):
        with connection(server.url) as opened:
            opened.send(data)
            opened.socket.shutdown(socket.SHUT_WR)
            assert opened.is_closed(within_s=3)


def test_chunked_bodies(server):
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (b'{"inputs"', b': "a"}'))
    start = b"POST /embed HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert one(server, start + chunks + b"0\r\n\r\n").status == 200
    assert one(server, start + b"0\r\n\r\n").status == 422
    assert one(server, start + b"zz\r\n").status == 400
    assert one(server, start + chunks + b"-1\r\n\r\n").status == 400
    assert one(server, start + chunks).status == 408  # the last chunk is missing


def test_a_chunked_body_without_end_is_cut_off(server):
    with connection(server.url) as opened:
        opened.send(b"POST /embed HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        for _ in range(25):
            opened.send(chunk)
        reply = opened.reply()
        assert reply.status == 413
        assert "20,000,000 bytes" in reply.json["error"]
        assert opened.is_closed(within_s=3)


def test_both_lengths_of_a_body_are_refused(server):
    """Proxies might take the one, and this server the other: request smuggling."""
    chunked = "Transfer-Encoding: chunked"
    assert one(server, post("/embed", BODY, chunked)).status == 400
    assert one(server, post("/embed", BODY, "Content-Length: 3")).status == 400
    assert one(server, post("/embed", BODY, length=-5)).status == 400
    assert one(server, post("/embed", BODY, "Transfer-Encoding: gzip", length=3)).status == 400


def test_a_large_body_is_refused_before_it_is_sent(server):
    with connection(server.url) as opened:
        opened.send(post("/v1/embeddings", b"", "Expect: 100-continue", length=100_000_000))
        reply = opened.reply()
    assert reply.status == 413
    assert reply.json["error"]["code"] == "request_too_large"


def test_a_large_body_that_is_sent_all_the_same_gets_its_answer(server):
    rss = psutil.Process(server.process.pid).memory_info().rss
    reply = server.client.post("/v1/embeddings", content=b" " * 100_000_000)
    assert reply.status_code == 413
    assert psutil.Process(server.process.pid).memory_info().rss - rss < 30_000_000
    with connection(server.url) as opened:
        opened.send(post("/embed", b" " * 50_000_000))
        assert opened.reply().status == 413
        opened.send(post("/embed", BODY))  # the rest was read: the connection is still good
        assert opened.reply().status == 200


def test_expect_100_continue(server):
    with connection(server.url) as opened:
        opened.send(post("/embed", b"", "Expect: 100-continue", length=len(BODY)))
        assert opened.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        opened.send(BODY.encode())
        assert opened.reply().status == 200


def test_pipelined_requests_are_answered_in_order(server):
    with connection(server.url) as opened:
        texts = ["a", "a text", "a text of some more words"]
        opened.send(b"".join(post("/tokenize", json.dumps({"inputs": text})) for text in texts))
        for text in texts:
            reply = opened.reply()
            assert reply.status == 200
            assert reply.json[0][-2]["stop"] == len(text)
        opened.send(post("/embed", BODY) + get("/health") + b"rubbish\r\n\r\n")
        assert opened.reply().status == 200
        assert opened.reply().status == 200
        assert opened.reply() is None


def test_the_start_of_a_next_request_does_not_disturb_a_slow_answer(server):
    """The clock of its headers runs while the first request is computed."""
    texts = ["several words " * 40] * 1500
    with connection(server.url) as opened:
        opened.send(post("/embed", json.dumps({"inputs": texts})) + b"GET /hea")
        reply = opened.reply()
        assert reply.status == 200
        assert len(reply.json) == 1500
        opened.send(b"lth HTTP/1.1\r\nHost: test\r\n\r\n")
        assert opened.reply().status in (200, 408)


def test_http_1_0(server):
    with connection(server.url) as opened:
        opened.send(get("/health", version="1.0"))
        reply = opened.reply()
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        assert opened.is_closed(within_s=2)
    assert one(server, b"GET /health HTTP/9.9\r\n\r\n").status == 400


@pytest.mark.parametrize("path", ["/health", "/metrics", "/info", "/", "/v1/models"])
def test_head_has_the_headers_of_get(server, path):
    with connection(server.url) as opened:
        opened.send(get(path, method="HEAD"))
        reply = opened.reply(head=True)
        assert reply.status == 200
        assert int(reply.headers["content-length"]) > 0
        opened.send(get("/health"))
        assert opened.reply().status == 200


def test_methods_that_a_route_does_not_answer(server):
    for method in ("OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
        reply = one(server, get("/v1/embeddings", method=method))
        assert reply.status == 405
        assert reply.headers["allow"] == "post"
        assert reply.json["error"]["type"] == "invalid_request_error"
    assert one(server, get("/embed")).status == 405
    assert one(server, post("/health", "")).status == 405
    assert one(server, get("*", method="OPTIONS")).status in (400, 404)
    assert one(server, get("example.org:443", method="CONNECT")).status in (400, 404, 405)
    assert one(server, get("/health", method="BREW")).status == 400


def test_get_with_a_body(server):
    with connection(server.url) as opened:
        opened.send(get("/health", "Content-Length: 20") + b"{" * 20)
        assert opened.reply().status == 200
        opened.send(post("/embed", BODY))
        assert opened.reply().status == 200


def test_a_request_to_upgrade_is_answered_as_if_it_had_none(server):
    """Java's client asks for HTTP/2 in its first request."""
    ask = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")
    with connection(server.url) as opened:
        for _ in range(2):
            opened.send(post("/embed", BODY, *ask))
            reply = opened.reply()
            assert reply.status == 200
            assert len(reply.json) == 1
        opened.send(get("/health", *ask))
        assert opened.reply().status == 200
    assert one(server, get("/health", "Connection: Upgrade", "Upgrade: websocket")).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%00",
        "/embed%00",
        "/%ff%fe",
        "/nothing?\xff",
        "/embed/?\xff",
        "//[",
        "/%5B",
        "/..%2f..%2fetc/passwd",
        "/%",
        "/%zz",
        "/" + "%F0%9F%98%80" * 100,
        "http://[/embed",
        "/v1/models/%00%ff",
        "/v1/models/..",
    ],
)
def test_strange_paths_are_not_found(server, path):
    for data in (get(path), post(path, BODY)):
        reply = one(server, data.replace(b"Host: test", b"Host: ["))
        assert reply.status in (400, 404, 405), reply
        assert "error" in reply.json


def test_percent_encoded_paths_are_what_they_stand_for(server):
    assert one(server, post("/%65mbed", BODY)).status == 200
    assert one(server, get("/health?x=%ff#fragment")).status == 200
    assert one(server, get("http://example.org/health")).status == 200


def test_a_slash_at_the_end_is_no_redirect(server):
    assert one(server, get("/health/")).status == 200
    assert one(server, post("/embed/", BODY)).status == 200
    assert one(server, post("/nothing/", BODY)).status == 404


def test_duplicated_headers(server):
    ids = ("X-Request-Id: one", "X-Request-Id: two")
    reply = one(server, post("/embed", BODY, *ids))
    assert reply.status == 200
    assert reply.headers["x-request-id"] in ("one", "two")
    assert one(server, get("/health", "Host: a", "Host: b")).status == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a-Z_0.9:x", True), ("a b", False), ("\xe9", False), ("a" * 129, False), ("", False)],
)
def test_request_ids_that_could_forge_a_line_of_the_log_are_replaced(server, given, kept):
    data = post("/embed", BODY, "X-Request-Id: ID").replace(b"ID", given.encode("latin-1"))
    found = one(server, data).headers["x-request-id"]
    assert (found == given.lower()) is kept
    assert kept or len(found) == 32


def test_headers_that_are_not_headers(server):
    for line in (b"no colon", b": no name", b"na me: value", b"name: \x00", b"name\x00: value"):
        reply = one(server, b"GET /health HTTP/1.1\r\n" + line + b"\r\n\r\n")
        assert reply.status == 400, line
        assert reply.json == {"error": "Invalid HTTP request received."}


def test_tls_and_rubbish_are_refused(server):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 100, b"hello\r\n\r\n"):
        assert one(server, data).status == 400


def test_the_rest_of_a_body_after_an_answer_is_waited_for_and_no_longer(server):
    with connection(server.url) as opened:
        opened.send(post("/nothing", b"a", length=100))
        assert opened.reply().status == 404
        for _ in range(99):
            opened.send(b"a")
        opened.send(get("/health"))
        assert opened.reply().status == 200
        opened.send(post("/nothing", b"a", length=100))
        assert opened.reply().status == 404
        opened.send(b"a")
        assert opened.is_closed(within_s=3)


LARGE_ANSWER = post("/decode", json.dumps({"ids": [[8999] * 1000] * 1000}))


def test_a_client_that_does_not_read_its_answer_keeps_no_memory(server):
    with connection(server.url, receive_bytes=4096) as opened:
        opened.send(LARGE_ANSWER)
        wait_until(lambda: is_established(server, opened))
        wait_until(lambda: not is_established(server, opened))


def test_a_client_that_reads_its_answer_slowly_gets_all_of_it(server):
    # With a smaller window, it is the system that waits, for seconds.
    with connection(server.url, receive_bytes=1 << 19) as opened:
        opened.send(LARGE_ANSWER)
        data = bytearray()
        started_s = time.monotonic()
        while len(data) < 4_000_000:  # nearly all of it
            data += opened.socket.recv(1 << 16)
            time.sleep(0.03)
        assert time.monotonic() - started_s > 1.5
        opened._left = bytes(data)
        reply = opened.reply()
        assert reply.status == 200
        assert len(reply.json) == 1000


def is_established(server, opened):
    found = psutil.Process(server.process.pid).net_connections("tcp")
    mine = opened.socket.getsockname()
    return any(each.status == psutil.CONN_ESTABLISHED and each.raddr == mine for each in found)


def test_no_descriptor_is_left(server):
    """After all that the other tests of this module have opened."""
    assert psutil.Process(server.process.pid).num_fds() < 50
