"""A server at twice its capacity for minutes: what it refuses, keeps, and holds in memory."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bge_bench.experiments.serving import ServingPlan, Step
from bge_bench.systems.servers import Server
from bge_bench.workers.load_driver import Samples, run_load

_OK = 200
_PARTS = 10
_BEFORE_S = 5.0
_WARM_S = 1.0
_PAUSE_S = 1.0
_DRAIN_S = 15.0


def measure_overload(
    server: Server, plan: ServingPlan, *, percent: int, seconds: float, step: Step
) -> dict[str, Any]:
    """Send a server more than it can do, and see how it is one second after.

    Args:
        server: The server.
        plan: The texts, the clients and their processes.
        percent: Rate in percent of what the server does for the most clients of the plan.
        seconds: How long.
        step: Called with a message before each step.

    Returns:
        Statuses, latencies of accepted requests in ten parts of the time, memory once a second,
        and the rates before and after, the latter for each second.
    """
    clients = max(plan.clients)
    most = plan.stream(server.spec, clients=clients)
    step(f"{server.spec.label}: its capacity")
    before = run_load(
        server.url, [most], seconds=_BEFORE_S, warm_s=_WARM_S, processes=plan.client_processes
    )["texts"]  # fmt: skip
    rate = percent / 100 * before.rate_per_s
    held: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            held.append(server.memory_bytes())

    step(f"{server.spec.label}: {percent} % of it for {seconds:.0f} s")
    begin = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        threads.submit(watch)
        too_much = threads.submit(
            run_load,
            server.url,
            [plan.stream(server.spec, rate_per_s=rate)],
            seconds=seconds,
            warm_s=_WARM_S,
            drain_s=_DRAIN_S,
            processes=plan.client_processes,
        )
        # The start of a process takes longer, so it is a little later.
        time.sleep(max(0.0, begin + _WARM_S + seconds + _PAUSE_S - time.perf_counter()))
        ended.set()
        after = run_load(
            server.url, [most], seconds=_BEFORE_S, warm_s=0.0, processes=plan.client_processes
        )["texts"]  # fmt: skip
        samples = too_much.result()["texts"]
    return {
        "label": server.spec.label,
        "percent": percent,
        "seconds": seconds,
        "clients": clients,
        "capacity_per_s": before.rate_per_s,
        "offered_per_s": rate,
        "accepted_per_s": samples.rate_per_s,
        "statuses": samples.statuses,
        "no_retry_after": samples.no_retry_after,
        "client_cpu_s": samples.client_cpu_s,
        "late_p99_ms": float(np.percentile(samples.late_ms, 99)),
        "parts": _parts(samples),
        "held_bytes": held,
        "pause_s": _PAUSE_S,
        "drained_after_s": _drained_after_s(samples),
        "after_per_s": _rates_after(samples, after),
        "after_statuses": after.statuses,
    }


def _parts(samples: Samples) -> list[dict[str, Any]]:
    """Return percentiles of the accepted requests of each tenth of the time."""
    parts = []
    due = samples.due[samples.accepted]
    for number in range(_PARTS):
        begin, end = (samples.seconds * edge / _PARTS for edge in (number, number + 1))
        latencies = samples.latencies_ms[(due >= begin) & (due < end)]
        figures = {
            f"p{at}_ms": float(np.percentile(latencies, at)) if len(latencies) else None
            for at in (50, 95, 99)
        }
        parts.append({"accepted": len(latencies), **figures})
    return parts


def _drained_after_s(samples: Samples) -> float | None:
    """Return seconds from the end of the window to the last answer."""
    done = samples.done[~np.isnan(samples.done)]
    return float(done.max() - samples.seconds) if len(done) else None


def _rates_after(samples: Samples, after: Samples) -> list[float]:
    """Return all that was answered in each second from the pause on, to old and new clients."""
    old = samples.done[samples.status == _OK] - samples.seconds - _PAUSE_S
    new = after.done[after.status == _OK]
    done = np.concatenate([old, new])
    return [
        float(np.count_nonzero((done >= second) & (done < second + 1)))
        for second in range(int(after.seconds))
    ]
