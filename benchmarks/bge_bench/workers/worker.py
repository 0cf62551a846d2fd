"""One side of a benchmark in a process of its own: ``python -m bge_bench.workers.worker SPEC``.

SPEC is a `bge_bench.systems.base.SideSpec` in JSON, with a ``query`` beside it. The worker
opens the side, embeds the query, writes one line of JSON with the time that took, and
then answers each line of JSON on stdin with one on stdout until stdin ends. That first
line is the cold start, so every worker measures one.
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
    from bge_bench.systems.base import Side


def main() -> None:
    """Serve one side."""
    # Libraries print to stdout as they like; from here on that is stderr's affair.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    query = spec.pop("query")

    start = time.perf_counter()
    from bge_bench.systems.base import SideSpec, open_side

    side = open_side(SideSpec(**spec))
    side.encode([query])
    first_vector_s = time.perf_counter() - start

    ready = {
        "first_vector_s": first_vector_s,
        "name": side.name,
        "precision": side.precision,
        "in_force": side.in_force,
    }
    answers.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(_answer(side, json.loads(line))) + "\n")


def _answer(side: Side, ask: dict[str, Any]) -> dict[str, Any]:
    """Do what a line asks for.

    ``corpus``: embed the texts of a JSON file and save the vectors; ``query``: embed a
    query, or a list of them at once, a number of times, or until ``budget_s`` is spent;
    ``state``: tell what is held, the peak so far, and what is in force by now. With
    ``batch_size`` that holds from then on.
    """
    side.batch_size = ask.get("batch_size", side.batch_size)
    if ask["do"] == "corpus":
        texts = json.loads(Path(ask["texts"]).read_text(encoding="utf-8"))
        start = time.perf_counter()
        vectors = side.encode(texts)
        seconds = time.perf_counter() - start
        vectors.tofile(ask["vectors"])
        return {"seconds": seconds, "shape": vectors.shape, "dtype": str(vectors.dtype)}
    if ask["do"] == "query":
        return {"ms": _query_ms(side, ask)}
    held = {"peak_bytes": _status_bytes("VmHWM"), "held_bytes": _status_bytes("VmRSS")}
    return held | {"in_force": side.in_force}


def _query_ms(side: Side, ask: dict[str, Any]) -> list[float]:
    texts = [ask["query"]] if isinstance(ask["query"], str) else ask["query"]
    budget_ms = ask.get("budget_s", math.inf) * 1e3
    calls: list[float] = []
    while len(calls) < ask["calls"] and sum(calls) < budget_ms:
        start = time.perf_counter()
        side.encode(texts)
        calls.append((time.perf_counter() - start) * 1e3)
    return calls


def _status_bytes(field: str) -> int:
    """Tell the most memory this process has held (``VmHWM``), or what it holds (``VmRSS``).

    Linux hands ``ru_maxrss`` on through exec, so that there a worker would begin with
    its parent's peak; the kernel's own record of this program does not.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        # Elsewhere only the peak is to be had.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
