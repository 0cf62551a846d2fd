"""The one error of the benchmarks."""

from __future__ import annotations

from bge_runtime.errors import BgeError


class BenchError(BgeError):
    """A comparison cannot be made, or would not be a fair one."""
