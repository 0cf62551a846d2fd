"""Send HTTP requests under load: ``python -m bge_bench.workers.load JOB SAMPLES``.

JOB is a file in JSON that `bge_bench.workers.load_driver` writes. Requests are built before the
first one is sent, and of a response only the status and the end are read, so that clients cost
little beside the server that they share processors with. SAMPLES becomes an ``.npz`` file; one line
of JSON on stdout says what the process itself used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httptools
import numpy as np
from numpy.typing import NDArray

LOST = 0
"""Status of a request whose connection broke."""
UNANSWERED = -1
"""Status of a request without an answer when the run ended."""

_OK, _TOO_MANY = 200, 429
_FIRST_CONNECTIONS = 64


def main() -> None:
    """Run the job, and write its samples."""
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    try:
        import uvloop
    except ImportError:  # no wheel for this system
        run: Callable[[Any], Any] = asyncio.run
    else:
        run = uvloop.run
    streams, used = run(_measure(job))
    arrays = {
        f"{stream.name}/{name}": values
        for stream in streams
        for name, values in stream.samples(job["warm_s"]).items()
    }
    np.savez(sys.argv[2], **arrays)
    json.dump(used, sys.stdout)


def arrival_times(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return the times of a Poisson process.

    Args:
        rate_per_s: Mean number of arrivals a second.
        seconds: Length of the process.
        seed: Seed of its random numbers.

    Returns:
        Seconds from the start, ascending, all less than ``seconds``.
    """
    chance = np.random.default_rng(seed)
    count = int(rate_per_s * seconds * 1.5) + 100
    times = np.cumsum(chance.exponential(1 / max(rate_per_s, 1e-9), count))
    return times[times < seconds]


async def _measure(job: dict[str, Any]) -> tuple[list[_Stream], dict[str, Any]]:
    streams = [_Stream(urlsplit(job["url"]), job, each) for each in job["streams"]]
    for stream in streams:
        await stream.connect(_FIRST_CONNECTIONS)
    start = time.perf_counter()
    for stream in streams:
        stream.begin(start)
    await asyncio.sleep(job["warm_s"])
    before = _cpu_seconds()
    await asyncio.sleep(start + job["warm_s"] + job["seconds"] - time.perf_counter())
    used = _cpu_seconds() - before
    for stream in streams:
        stream.accepts_new = False
    deadline = time.perf_counter() + job["drain_s"]
    while any(stream.waiting for stream in streams) and time.perf_counter() < deadline:
        await asyncio.sleep(0.005)
    return streams, {
        "client_cpu_s": used,
        "no_retry_after": sum(stream.no_retry_after for stream in streams),
        "kept": {stream.name: stream.kept for stream in streams},
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class _Stream:
    """Requests of one kind: of clients that wait for their answers, or at random times.

    Attributes:
        name: Name of the stream.
        waiting: Number of requests without an answer.
        accepts_new: Whether a client sends its next request after an answer.
        kept: Bodies of the first answers, by the number of the request's text.
        no_retry_after: Answers of status 429 that do not say when to try again.
    """

    def __init__(self, address: SplitResult, job: dict[str, Any], stream: dict[str, Any]) -> None:
        self.name: str = stream["name"]
        self.waiting = 0
        self.accepts_new = True
        self.kept: dict[int, str] = {}
        self.no_retry_after = 0
        self._address = address
        self._requests = _build_requests(address.netloc, stream)
        self._first: int = stream["first"]
        self._keep: int = stream["keep"]
        self._clients: int | None = stream["clients"]
        self._times = (
            np.empty(0)
            if self._clients is not None
            else arrival_times(stream["rate_per_s"], job["warm_s"] + job["seconds"], stream["seed"])
        )
        self._most_connections: int = job["most_connections"]
        self._connections = 0
        self._idle: list[_Connection] = []
        self._queue: deque[int] = deque()
        self._start = 0.0
        # Of each request: when it was due, sent and answered, and its status.
        self._due, self._sent, self._done = array("d"), array("d"), array("d")
        self._status = array("h")

    async def connect(self, most: int) -> None:
        """Open the connections of all clients, or the first ones of a stream at random times."""
        for _ in range(self._clients if self._clients is not None else most):
            self._connections += 1
            self._idle.append(await self._new_connection())

    def begin(self, start: float) -> None:
        """Send the first request of each client, or start the thread that says when to send."""
        self._start = start
        if self._clients is None:
            # Timers of an event loop are exact to a millisecond only.
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._keep_time, args=(loop,), daemon=True).start()
            return
        for connection in list(self._idle):
            self._send(self._new_request(start), connection)
        self._idle.clear()

    def answered(
        self, number: int, status: int, retry_after: bool, body: bytes, connection: _Connection
    ) -> None:
        """Take the answer to a request, and send the next one that waits for a connection."""
        self._finish(number, status)
        if status == _TOO_MANY and not retry_after:
            self.no_retry_after += 1
        if body and status == _OK:
            self.kept[(self._first + number) % len(self._requests)] = body.decode()
        if self._clients is not None:
            if self.accepts_new:
                self._send(self._new_request(time.perf_counter()), connection)
        elif self._queue:
            self._send(self._queue.popleft(), connection)
        else:
            self._idle.append(connection)

    def lost(self, number: int | None, connection: _Connection) -> None:
        """Take the end of a connection; the request on it has failed."""
        self._connections -= 1
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if number is not None:
            self._finish(number, LOST)
        if (self._clients is not None and self.accepts_new) or self._queue:
            self._open_another()

    def samples(self, warm_s: float) -> dict[str, NDArray[Any]]:
        """Return the samples, in seconds from the end of the warm-up."""
        zero = self._start + warm_s
        times = {"due": self._due, "sent": self._sent, "done": self._done}
        found = {name: np.asarray(values) - zero for name, values in times.items()}
        return {**found, "status": np.asarray(self._status)}

    def _keep_time(self, loop: asyncio.AbstractEventLoop) -> None:
        for due in (self._times + self._start).tolist():
            if (pause := due - time.perf_counter()) > 0:
                time.sleep(pause)
            try:
                loop.call_soon_threadsafe(self._arrive, due)
            except RuntimeError:  # the loop is closed
                return

    def _arrive(self, due: float) -> None:
        number = self._new_request(due)
        if self._idle:
            self._send(number, self._idle.pop())
            return
        self._queue.append(number)
        if self._connections < self._most_connections:
            self._open_another()

    def _new_request(self, due: float) -> int:
        self._due.append(due)
        self._sent.append(np.nan)
        self._done.append(np.nan)
        self._status.append(UNANSWERED)
        self.waiting += 1
        return len(self._due) - 1

    def _send(self, number: int, connection: _Connection) -> None:
        request = self._requests[(self._first + number) % len(self._requests)]
        self._sent[number] = time.perf_counter()
        connection.send(number, request, keep=number < self._keep)

    def _finish(self, number: int, status: int) -> None:
        self._done[number] = time.perf_counter()
        self._status[number] = status
        self.waiting -= 1

    def _open_another(self) -> None:
        self._connections += 1
        task = asyncio.get_running_loop().create_task(self._connect_one())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    async def _connect_one(self) -> None:
        try:
            connection = await self._new_connection()
        except OSError:
            self._connections -= 1
            if self._queue:
                self._finish(self._queue.popleft(), LOST)
            return
        if self._clients is not None and self.accepts_new:
            self._send(self._new_request(time.perf_counter()), connection)
        elif self._queue:
            self._send(self._queue.popleft(), connection)
        else:
            self._idle.append(connection)

    async def _new_connection(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self), self._address.hostname or "", self._address.port or 80
        )
        return connection


_tasks: set[asyncio.Task[None]] = set()
"""Connections that are being opened: an event loop holds its tasks weakly."""


class _Connection(asyncio.Protocol):
    """A connection that stays open, with one request at a time."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._number: int | None = None
        self._keep = False
        self._body: list[bytes] = []
        self._retry_after = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpResponseParser(self)

    def send(self, number: int, request: bytes, *, keep: bool) -> None:
        """Send a request, and keep the body of its answer if asked."""
        self._number, self._keep, self._retry_after = number, keep, False
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._stream.lost(self._number, self)

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002  # httptools' signature
        """Note that an answer says when to try again; called by httptools."""
        if len(name) == len(b"retry-after") and name.lower() == b"retry-after":
            self._retry_after = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of a body that is asked for; called by httptools."""
        if self._keep:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand on the answer; called by httptools."""
        number, body = self._number, b"".join(self._body)
        self._number = None
        self._body.clear()
        status = self._parser.get_status_code()
        if number is not None:
            self._stream.answered(number, status, self._retry_after, body, self)


def _build_requests(host: str, stream: dict[str, Any]) -> list[bytes]:
    head = f"POST {stream['path']} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    bodies = [json.dumps(body).encode() for body in stream["bodies"]]
    return [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


if __name__ == "__main__":
    main()
