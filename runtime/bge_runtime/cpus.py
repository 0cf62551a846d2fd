"""The processors: which they are, and how many of them this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """Count the processors this process may use.

    The affinity mask and a container's CPU quota both count: threads beyond them
    would only take turns.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP_LIMIT.read_text().split()
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    return max(count, 1)


def cpu_model() -> str:
    """Name the processor, as its maker calls it."""
    # platform.processor() is empty, or only "x86_64", on most Linux systems.
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
