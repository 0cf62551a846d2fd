"""How many threads a CPU engine should use."""

from __future__ import annotations

import contextlib
import os
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
