"""Run one system in its own process: ``python -m bge_bench.workers.worker SPEC``.

SPEC is a `bge_bench.systems.base.SystemSpec` in JSON. The worker opens the system, embeds a query
or scores a pair, and writes one line of JSON with the time that this took: the cold start. Then it
answers each line of JSON on stdin with one on stdout, until stdin ends.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_bench.systems.base import System


def main() -> None:
    """Answer requests for one system until stdin ends."""
    # Libraries may print to stdout; from here on their output goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    given = json.loads(sys.argv[1])

    start = time.perf_counter()
    from bge_bench.systems.base import SystemSpec, open_system

    spec = SystemSpec(**given)
    system = open_system(spec)
    system.encode([spec.first])
    first_vector_s = time.perf_counter() - start

    ready = {
        "first_vector_s": first_vector_s,
        "name": system.name,
        "precision": system.precision,
        "in_force": system.in_force,
    }
    answers.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(system, json.loads(line))) + "\n")


def _answer(system: System, ask: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one request.

    ``corpus`` embeds the texts of a JSON file and saves the vectors; a reranker gets pairs and
    saves logits. ``query`` embeds a query, or a list of them in one call, several times or until
    ``budget_s`` is spent. ``each`` embeds texts in calls of their own. ``state`` returns the memory
    held, its peak, and what is in force. ``batch_size`` in a request stays in force.
    """
    system.batch_size = ask.get("batch_size", system.batch_size)
    if ask["do"] == "corpus":
        texts = json.loads(Path(ask["texts"]).read_text(encoding="utf-8"))
        start = time.perf_counter()
        vectors = system.encode(texts)
        seconds = time.perf_counter() - start
        vectors.tofile(ask["vectors"])
        return {"seconds": seconds, "shape": vectors.shape, "dtype": str(vectors.dtype)}
    if ask["do"] == "query":
        return {"ms": _query_ms(system, ask)}
    if ask["do"] == "each":
        one = {"calls": 1}
        return {"ms": [_query_ms(system, {"query": text, **one})[0] for text in ask["texts"]]}
    held = {"peak_bytes": _status_bytes("VmHWM"), "held_bytes": _status_bytes("VmRSS")}
    return held | {"in_force": system.in_force}


def _query_ms(system: System, ask: dict[str, Any]) -> list[float]:
    texts = [ask["query"]] if isinstance(ask["query"], str) else ask["query"]
    budget_ms = ask.get("budget_s", math.inf) * 1e3
    calls: list[float] = []
    while len(calls) < ask["calls"] and sum(calls) < budget_ms:
        start = time.perf_counter()
        system.encode(texts)
        calls.append((time.perf_counter() - start) * 1e3)
    return calls


def _status_bytes(field: str) -> int:
    """Return the peak memory of this process (``VmHWM``), or what it holds now (``VmRSS``).

    On Linux ``ru_maxrss`` survives exec, so a worker would start with its parent's peak; the values
    in ``/proc`` do not.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        # Other systems have only the peak.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
