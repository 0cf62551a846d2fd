"""The one error of the benchmarks."""

from __future__ import annotations

from bge_runtime.errors import BgeError


class BenchError(BgeError):
    """A comparison is impossible, or would be unfair."""
