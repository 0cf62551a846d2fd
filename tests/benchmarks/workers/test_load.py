"""The load: times at random, loops of clients, what is counted, and what it cost."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bge_bench.errors import BenchError
from bge_bench.workers.load import LOST, UNANSWERED, arrival_times
from bge_bench.workers.load_driver import Samples, Stream, run_load

BODIES = [{"input": f"text {number}"} for number in range(8)]


class Peer:
    """A server that answers what its test asks for, and counts."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.status, self.headers = 200, {}
        self.delay_s = 0.0
        self.seen: list[str] = []
        self.ended = threading.Event()


@pytest.fixture
def peer() -> Iterator[Peer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            peer.seen.append(json.loads(body)["input"])
            peer.ended.wait(peer.delay_s)
            if peer.status == LOST:
                self.close_connection = True
                return
            self.send_response(peer.status)
            for name, value in peer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # a client has gone, as it may

    with Server(("127.0.0.1", 0), Handler) as server:
        peer = Peer(server.server_port)
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield peer
        peer.ended.set()
        server.shutdown()
        serving.join()


def load(peer: Peer, *, seconds: float = 0.4, warm_s: float = 0.1, **stream: object) -> Samples:
    given = Stream(name="texts", path="/v1/embeddings", bodies=BODIES, **stream)
    return run_load(peer.url, [given], seconds=seconds, warm_s=warm_s, drain_s=0.5)["texts"]


def test_arrivals_are_a_poisson_process():
    times = arrival_times(500, 20, seed=3)
    gaps = np.diff(times)
    assert np.all(gaps > 0)
    assert 0 < times[0] < times[-1] < 20
    assert len(times) == pytest.approx(10_000, rel=0.05)
    # Exponential: as much spread as mean, and no memory.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.05
    np.testing.assert_array_equal(times, arrival_times(500, 20, seed=3))
    assert len(arrival_times(0, 20, seed=3)) == 0


def test_each_client_of_a_closed_loop_waits_for_its_answer(peer: Peer):
    peer.delay_s = 0.02
    samples = load(peer, clients=4)
    assert samples.statuses.keys() == {"200"}
    assert 0 < samples.rate_per_s <= 4 / 0.02
    under_way = [((samples.sent <= at) & (samples.done > at)).sum() for at in samples.sent]
    assert max(under_way) == 4
    assert samples.latencies_ms.min() >= 20
    assert 0 < samples.client_cpu_s < samples.seconds
    assert set(peer.seen) == {body["input"] for body in BODIES}


def test_latency_of_an_open_loop_counts_from_when_a_request_was_due(peer: Peer):
    peer.delay_s = 0.01
    samples = load(peer, rate_per_s=200)
    assert len(samples.due) == len(arrival_times(200, 0.5, seed=0))
    assert samples.statuses.keys() == {"200"}
    assert samples.latencies_ms.min() >= 10
    assert np.all(samples.late_ms >= 0)
    np.testing.assert_allclose(samples.due + 0.1, arrival_times(200, 0.5, seed=0), atol=1e-6)


def test_processes_share_clients_and_rates(peer: Peer):
    streams = [
        Stream(name="closed", path="/", bodies=BODIES, clients=3, keep=1),
        Stream(name="open", path="/", bodies=BODIES, rate_per_s=100),
    ]
    found = run_load(peer.url, streams, seconds=0.4, warm_s=0.1, drain_s=0.5, processes=2)
    assert found["closed"].statuses.keys() == found["open"].statuses.keys() == {"200"}
    assert len(found["open"].due) == pytest.approx(50, rel=0.6)
    assert found["closed"].kept == {0: "{}", 4: "{}"}
    assert np.all(np.diff(found["open"].due) >= 0)


def test_refusals_are_counted_apart_with_what_they_lack(peer: Peer):
    peer.delay_s = 0.005
    peer.status = 429
    samples = load(peer, clients=2)
    assert samples.statuses.keys() == {"429"}
    assert samples.rate_per_s == 0
    assert not len(samples.latencies_ms)
    assert samples.no_retry_after > 0
    peer.headers = {"Retry-After": "1"}
    assert load(peer, clients=2).no_retry_after == 0


def test_a_lost_connection_is_an_error_and_the_next_request_goes_on_another(peer: Peer):
    peer.status, peer.delay_s = LOST, 0.01
    samples = load(peer, clients=2)
    assert samples.statuses.keys() == {str(LOST)}
    assert samples.statuses[str(LOST)] > 2  # each client went on


def test_requests_without_an_answer_are_counted(peer: Peer):
    peer.delay_s = 60
    samples = load(peer, rate_per_s=50)
    assert samples.statuses.keys() == {str(UNANSWERED)}
    assert np.all(np.isnan(samples.done))


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(BenchError, match=r"a process of the load failed: .*refused"):
        run_load("http://127.0.0.1:1", [Stream(name="x", path="/", bodies=BODIES, clients=1)],
                 seconds=0.1)  # fmt: skip


def test_percentiles_and_rates_are_of_the_window():
    due = np.array([-0.5, 0.0, 0.2, 0.4, 0.9])
    samples = Samples(
        due=due,
        sent=due + 0.001,
        done=due + np.array([0.1, 0.1, 0.2, 0.3, 0.4]),
        status=np.array([200, 200, 200, 503, 200], np.int16),
        seconds=1.0,
        client_cpu_s=0.25,
        no_retry_after=0,
        kept={},
    )
    np.testing.assert_allclose(samples.latencies_ms, [100, 200, 400])
    assert samples.rate_per_s == 2  # one came before, one failed, one was answered after
    assert samples.statuses == {"200": 3, "503": 1}
    np.testing.assert_allclose(samples.late_ms, 1.0)
