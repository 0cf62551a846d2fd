"""Put a server under load from processes of their own, and read what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.errors import BenchError

_START_S = 120.0
"""Longest wait for a process of the load to start and to end, on a busy machine."""

_MOST_CONNECTIONS = 8192


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Requests of one kind.

    Attributes:
        name: Name of the stream.
        path: Path of the URL.
        bodies: Bodies, ready for JSON, which are sent in turn, again and again.
        clients: Closed loop: so many clients, each of which waits for its answer.
        rate_per_s: Open loop: mean number of requests a second, at random times.
        keep: Number of answers whose bodies are kept.
        first: Body to begin with.
        seed: Seed of the random times.
    """

    name: str
    path: str
    bodies: Sequence[Mapping[str, Any]]
    clients: int | None = None
    rate_per_s: float | None = None
    keep: int = 0
    first: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Every request of a stream, sorted by the time at which it was due.

    Attributes:
        due: When it should be sent. In a closed loop, when the client was ready.
        sent: When it was sent; NaN if it never was.
        done: When its answer was complete; NaN without one.
        status: HTTP status, or one of `LOST` and `UNANSWERED`.
        seconds: Length of the window: times count from its start, after the warm-up.
        client_cpu_s: Processor time that all processes of the load used within the window.
        no_retry_after: Answers of status 429 without ``Retry-After``.
        kept: Bodies of the answers that were kept, by the number of their request's body.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int16]
    seconds: float
    client_cpu_s: float
    no_retry_after: int
    kept: dict[int, str]

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """Whether each request was due within the window, and answered with 200."""
        within: NDArray[np.bool_] = (self.status == 200) & (self.due >= 0)
        return within

    @property
    def latencies_ms(self) -> NDArray[np.float64]:
        """Milliseconds from when each accepted request was due until it was answered."""
        return (self.done - self.due)[self.accepted] * 1e3

    @property
    def rate_per_s(self) -> float:
        """Accepted answers a second within the window."""
        within = (self.status == 200) & (self.done >= 0) & (self.done < self.seconds)
        return float(np.count_nonzero(within)) / self.seconds

    @property
    def statuses(self) -> dict[str, int]:
        """Number of requests of each status that were due within the window."""
        found, counts = np.unique(self.status[self.due >= 0], return_counts=True)
        return {str(status): int(count) for status, count in zip(found, counts, strict=True)}

    @property
    def late_ms(self) -> NDArray[np.float64]:
        """Milliseconds by which each request was sent after it was due."""
        late = (self.sent - self.due)[self.due >= 0]
        return late[~np.isnan(late)] * 1e3


def run_load(
    url: str,
    streams: Sequence[Stream],
    *,
    seconds: float,
    warm_s: float = 1.0,
    drain_s: float = 10.0,
    processes: int = 1,
) -> dict[str, Samples]:
    """Put a server under load.

    Args:
        url: Address of the server, without a path.
        streams: What is sent, all at the same time.
        seconds: Length of the window that is measured.
        warm_s: Seconds of load before it.
        drain_s: Longest wait for answers after it.
        processes: Processes that share clients and rates between them.

    Returns:
        The samples of each stream.

    Raises:
        BenchError: If a process fails.
    """
    timing = {"warm_s": warm_s, "seconds": seconds, "drain_s": drain_s}
    common = {"url": url, "most_connections": _MOST_CONNECTIONS // processes, **timing}
    with tempfile.TemporaryDirectory(prefix="bge-bench-load-") as name:
        folder = Path(name)
        running = []
        for index in range(processes):
            shares = [_share(stream, index, processes) for stream in streams]
            job = {**common, "streams": [asdict(share) for share in shares if share is not None]}
            (folder / f"{index}.json").write_text(json.dumps(job), "utf-8")
            command = [sys.executable, "-m", "bge_bench.workers.load"]
            files = [str(folder / f"{index}.json"), str(folder / f"{index}.npz")]
            running.append(
                subprocess.Popen(  # noqa: S603  # our own module
                    [*command, *files], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        try:
            said = [_finish(process, sum(timing.values()) + _START_S) for process in running]
        finally:
            for process in running:
                process.kill()
        parts = [dict(np.load(folder / f"{index}.npz")) for index in range(processes)]
    return {stream.name: _merge(stream.name, parts, said, seconds) for stream in streams}


def _share(stream: Stream, index: int, processes: int) -> Stream | None:
    """Return the part of a stream that one of several processes sends; None for nothing."""
    if processes == 1:
        return stream
    first = stream.first + index * len(stream.bodies) // processes
    shared = replace(stream, first=first, seed=stream.seed * processes + index)
    if stream.clients is None:
        assert stream.rate_per_s is not None
        return replace(shared, rate_per_s=stream.rate_per_s / processes)
    clients = len(range(index, stream.clients, processes))
    return replace(shared, clients=clients) if clients else None


def _finish(process: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise BenchError(f"a process of the load did not end within {timeout_s:.0f} s") from None
    if process.returncode != 0:
        tail = errors.strip().split("\n")[-1]
        raise BenchError(f"a process of the load failed: {tail}")
    answer: dict[str, Any] = json.loads(output)
    return answer


def _merge(
    name: str,
    parts: Sequence[Mapping[str, NDArray[Any]]],
    said: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Samples:
    mine = [part for part in parts if f"{name}/due" in part]
    due, sent, done, status = (
        np.concatenate([part[f"{name}/{field}"] for part in mine])
        for field in ("due", "sent", "done", "status")
    )
    order = np.argsort(due, kind="stable")
    kept = {
        int(number): body
        for answer in said
        for number, body in answer["kept"].get(name, {}).items()
    }
    return Samples(
        due=due[order],
        sent=sent[order],
        done=done[order],
        status=status[order],
        seconds=seconds,
        client_cpu_s=sum(answer["client_cpu_s"] for answer in said),
        no_retry_after=sum(answer["no_retry_after"] for answer in said),
        kept=kept,
    )
