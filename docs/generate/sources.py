"""Which raw files charts and README's table are made from: the newest complete one of each kind.

After a new measurement: commit its file to `benchmarks/results`, name it here or in a page's
``<!-- table: ... -->``, and run `make charts`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"

THROUGHPUT = {
    "fp32": "2026-12-01-bge-base-natural-throughput",
    "bf16": "2026-12-01-bge-base-natural-throughput",
    "int8": "2026-12-01-bge-base-natural-throughput",
}
"""bge-base by precision: README's chart, and that of throughput and fidelity."""

LATENCY = dict.fromkeys(("fp32", "bf16", "int8"), "2026-12-01-bge-base-latency")
"""bge-base by precision: the chart of latency and length."""

SERVING = ("2026-12-01-bge-small-serve", "2026-12-01-bge-base-serve")
"""Servers under load, a panel for each."""

README = "2026-12-01-bge-base-speed"
"""README's table: one run of `bge-bench speed`."""


@cache
def read(name: str) -> Any:
    """Return the content of a raw file."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
