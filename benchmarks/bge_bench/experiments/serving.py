"""Servers under load, each in turn, beside ``encode`` of the same texts without a server."""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.errors import BenchError
from bge_bench.systems.servers import INFINITY_ENGINES, Server, ServerSpec
from bge_bench.workers.driver import Worker
from bge_bench.workers.load_driver import Samples, Stream, run_load
from bge_runtime.bundle import compare

Step = Callable[[str], object]

PARITY_TEXTS = 16
"""Answers of a server that are compared with ``encode`` in fp32."""

BULK_TEXTS = 16
"""Texts of a request of the bulk job that runs beside queries."""

_BULK_CLIENTS = 2
_WARM_S = 1.0
_SETTLE_S = 0.3
_DRAIN_S = 10.0
_PROBE_CLIENTS, _PROBE_S = 64, 8.0
_QUERY_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What is measured.

    Attributes:
        texts: Texts of the requests, one each, in an order that has none.
        queries: Search queries.
        passages: Texts of the bulk job.
        query_format: Format of a query with its instruction.
        clients: Numbers of clients of the closed loops.
        loads: Rates of the open loops, in percent of each server's capacity.
        seconds: Seconds of each measurement.
        rounds: Rounds of everything but the bulk job.
        processors: Processors that servers and clients share.
        client_processes: Processes of the clients.
    """

    texts: Sequence[str]
    queries: Sequence[str]
    passages: Sequence[str]
    query_format: str
    clients: Sequence[int]
    loads: Sequence[int]
    seconds: float
    rounds: int
    processors: int
    client_processes: int

    def stream(self, spec: ServerSpec, *, number: int = 0, **how: Any) -> Stream:
        """Return requests of one text each; rounds of another ``number`` begin elsewhere."""
        bodies = [spec.body(text) for text in self.texts]
        first = number * len(bodies) // max(1, self.rounds)
        return Stream(name="texts", path=spec.path, bodies=bodies, first=first, seed=number, **how)

    def query_stream(self, spec: ServerSpec, **how: Any) -> Stream:
        """Return requests of one query each."""
        bodies = [spec.body(query, query=self.query_format) for query in self.queries]
        return Stream(name="queries", path=spec.path, bodies=bodies, **how)

    def bulk_stream(self, spec: ServerSpec) -> Stream:
        """Return requests of many passages each, of clients that never pause."""
        # The whole list, cut into requests of the same size, however short it is.
        texts = [*self.passages] * (1 + BULK_TEXTS // len(self.passages))
        cuts = range(0, len(texts) - BULK_TEXTS + 1, BULK_TEXTS)
        bodies = [spec.body(texts[cut : cut + BULK_TEXTS]) for cut in cuts]
        return Stream(name="bulk", path=spec.path, bodies=bodies, clients=_BULK_CLIENTS)


def measure_serving(
    servers: Sequence[Server],
    encoder: Worker,
    reference: NDArray[np.float32],
    plan: ServingPlan,
    *,
    folder: Path,
    step: Step,
) -> dict[str, Any]:
    """Measure all servers in turn, round by round.

    Args:
        servers: The servers, all running.
        encoder: Process of ``encode``, with the bundle in the same precision as bge-serve.
        reference: Vectors of the first `PARITY_TEXTS` texts, in fp32.
        plan: What is measured.
        folder: Folder for files.
        step: Called with a message before each step.

    Returns:
        ``encode`` and ``rows`` of the document.
    """
    encoder.embed(plan.texts[:64], folder)
    runs: dict[str, dict[str, list[Any]]] = {server.spec.label: {} for server in servers}
    encode_s: list[float] = []
    encode_ms: list[float] = []
    instructed = [plan.query_format.format(query) for query in plan.queries]
    for number in range(plan.rounds):
        step(f"encode: round {number + 1}")
        time.sleep(_SETTLE_S)
        encode_s.append(encoder.embed(plan.texts, folder)[0])
        encode_ms += encoder.ask("each", texts=instructed)["ms"]
        shift = number % len(servers)
        for server in (*servers[shift:], *servers[:shift]):
            kept = runs[server.spec.label]
            step(f"{server.spec.label}: closed loops, round {number + 1}")
            query = plan.query_stream(server.spec, clients=1)
            kept.setdefault("query", []).append(_run(server, query, plan))
            for clients in plan.clients:
                stream = plan.stream(server.spec, number=number, clients=clients, keep=32)
                kept.setdefault(f"closed {clients}", []).append(_run(server, stream, plan))
    capacities = {
        label: max(point(kept[f"closed {n}"], plan)["texts_per_s"] for n in plan.clients)
        for label, kept in runs.items()
    }
    for number in range(plan.rounds):
        for server in servers:
            label = server.spec.label
            for load in plan.loads:
                step(f"{label}: {load} % of its capacity, round {number + 1}")
                rate = load / 100 * capacities[label]
                stream = plan.stream(server.spec, number=number, rate_per_s=rate)
                runs[label].setdefault(f"open {load}", []).append(_run(server, stream, plan))
    for server in servers:
        step(f"{server.spec.label}: queries beside a bulk job")
        runs[server.spec.label].update(_beside_bulk(server, plan))
    rows = [_row(server, runs[server.spec.label], reference, plan) for server in servers]
    for row in rows:
        row["capacity_per_s"] = capacities[row["label"]]
    encode = {
        "in_force": encoder.ready["in_force"],
        "precision": encoder.ready["precision"],
        "texts_per_s": [len(plan.texts) / seconds for seconds in encode_s],
        "query": _percentiles(np.asarray(encode_ms)),
    }
    return {"encode": encode, "rows": rows}


def choose_infinity(
    specs: Sequence[ServerSpec],
    reference: NDArray[np.float32],
    plan: ServingPlan,
    *,
    step: Step,
) -> tuple[ServerSpec, dict[str, Any]]:
    """Return infinity at its best engine: the fastest with 64 clients whose vectors are right.

    Args:
        specs: infinity with each engine.
        reference: Vectors of the first `PARITY_TEXTS` texts, in fp32.
        plan: The texts, and the processes of the clients.
        step: Called with a message before each step.

    Returns:
        The spec, and what was found of each engine: its rate, or why it is out.

    Raises:
        BenchError: If none is left.
    """
    found: dict[str, Any] = {}
    for spec in specs:
        assert spec.engine is not None
        step(f"infinity: engine {spec.engine}")
        try:
            with Server(spec) as server:
                stream = plan.stream(spec, clients=_PROBE_CLIENTS, keep=32)
                samples = run_load(
                    server.url, [stream], seconds=_PROBE_S, warm_s=2.0,
                    processes=plan.client_processes,
                )["texts"]  # fmt: skip
            parity = compare(*_kept_vectors([samples], reference))
        except BenchError as error:
            found[spec.engine] = {"failed": str(error).split("\n", 1)[0]}
            continue
        precision = INFINITY_ENGINES[spec.engine][0]
        found[spec.engine] = {
            "texts_per_s": samples.rate_per_s,
            "min_cosine": parity.min_cosine,
            "failed": "; ".join(parity.failures(precision)),
        }
    able = [spec for spec in specs if not found[str(spec.engine)]["failed"]]
    if not able:
        raise BenchError(f"no engine of infinity can be measured: {json.dumps(found)}")
    return max(able, key=lambda spec: found[str(spec.engine)]["texts_per_s"]), found


def _run(server: Server, stream: Stream, plan: ServingPlan) -> dict[str, Any]:
    """Return the samples of one run, and the processor time of the server."""
    return _run_all(server, [stream], plan)[stream.name]


def _run_all(
    server: Server, streams: Sequence[Stream], plan: ServingPlan
) -> dict[str, dict[str, Any]]:
    time.sleep(_SETTLE_S)
    before, began = server.cpu_seconds(), time.perf_counter()
    found = run_load(
        server.url,
        streams,
        seconds=plan.seconds,
        warm_s=_WARM_S,
        drain_s=max(plan.seconds, _DRAIN_S),
        processes=plan.client_processes,
    )
    share = (server.cpu_seconds() - before) / (time.perf_counter() - began)
    rate = sum(stream.rate_per_s or 0 for stream in streams)
    return {
        name: {"samples": samples, "server_cpu_share": share, "offered_per_s": rate or None}
        for name, samples in found.items()
    }


def point(runs: Sequence[Mapping[str, Any]], plan: ServingPlan) -> dict[str, Any]:
    """Return the figures of one load: percentiles over all rounds' samples, medians of rates."""
    all_samples: list[Samples] = [run["samples"] for run in runs]
    rounds = [
        {
            "texts_per_s": samples.rate_per_s,
            "offered_per_s": run["offered_per_s"],
            "client_cpu_s": samples.client_cpu_s,
            "server_cpu_share": run["server_cpu_share"],
            "without_clients_per_s": without_clients(samples, plan.processors),
            "late_p99_ms": _at(samples.late_ms, 99),
            "statuses": samples.statuses,
            "no_retry_after": samples.no_retry_after,
        }
        for run, samples in zip(runs, all_samples, strict=True)
    ]
    statuses: dict[str, int] = {}
    for each in rounds:
        for status, count in each["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "texts_per_s": statistics.median(each["texts_per_s"] for each in rounds),
        "without_clients_per_s": statistics.median(
            each["without_clients_per_s"] for each in rounds
        ),
        **_percentiles(np.concatenate([samples.latencies_ms for samples in all_samples])),
        "statuses": statuses,
        "seconds": plan.seconds,
        "rounds": rounds,
    }


def without_clients(samples: Samples, processors: int) -> float:
    """Return the rate of a server had it had the processor time of its clients as well."""
    there = samples.seconds * processors
    return samples.rate_per_s * there / max(there - samples.client_cpu_s, 1e-9)


def _beside_bulk(server: Server, plan: ServingPlan) -> dict[str, list[Any]]:
    """Return queries at 80 % of the rate they can have, alone and beside a bulk job."""
    spec = server.spec
    most = _run(server, plan.query_stream(spec, clients=max(plan.clients)), plan)
    rate = _QUERY_SHARE * most["samples"].rate_per_s
    alone = _run(server, plan.query_stream(spec, rate_per_s=rate), plan)
    both = _run_all(
        server, [plan.query_stream(spec, rate_per_s=rate), plan.bulk_stream(spec)], plan
    )
    return {
        "queries": [most],
        "queries alone": [alone],
        "queries beside bulk": [both["queries"]],
        "bulk": [both["bulk"]],
    }


def _row(
    server: Server,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    reference: NDArray[np.float32],
    plan: ServingPlan,
) -> dict[str, Any]:
    closed = [run["samples"] for n in plan.clients for run in runs[f"closed {n}"]]
    spec = server.spec
    return {
        "label": spec.label,
        "ours": spec.ours,
        **server.facts(),
        "parity": asdict(compare(*_kept_vectors(closed, reference))),
        "peak_memory_bytes": server.peak_bytes,
        "closed": {str(n): point(runs[f"closed {n}"], plan) for n in plan.clients},
        "open": {str(load): point(runs[f"open {load}"], plan) for load in plan.loads},
        **{
            name.replace(" ", "_"): point(runs[name], plan)
            for name in ("query", "queries", "queries alone", "queries beside bulk", "bulk")
        },
    }


def _kept_vectors(
    runs: Sequence[Samples], reference: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the vectors of the answers that were kept, and those of their texts in fp32."""
    found: dict[int, NDArray[np.float32]] = {}
    for samples in runs:
        for number, body in samples.kept.items():
            if number < len(reference):
                found[number] = _vector(body)
    if len(found) < 2:
        raise BenchError(f"{len(found)} answers could be compared with encode; two are needed")
    numbers = sorted(found)
    return np.stack([found[number] for number in numbers]), reference[numbers]


def _vector(body: str) -> NDArray[np.float32]:
    try:
        embedding = json.loads(body)["data"][0]["embedding"]
    except (ValueError, LookupError, TypeError) as error:
        raise BenchError(f"an answer is not one of OpenAI's route: {body[:120]!r}") from error
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return np.asarray(embedding, np.float32)


def _percentiles(latencies_ms: NDArray[np.float64]) -> dict[str, Any]:
    named = {f"p{at}_ms": _at(latencies_ms, at) for at in (50, 95, 99)}
    return {**named, "max_ms": _at(latencies_ms, 100), "requests": len(latencies_ms)}


def _at(values: NDArray[np.float64], percentile: float) -> float | None:
    return float(np.percentile(values, percentile)) if len(values) else None
