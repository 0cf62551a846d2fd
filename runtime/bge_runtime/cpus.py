"""The processors: which they are, and how many of them this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """Count the processors this process may use.

    The affinity mask and a container's CPU quota both count: threads beyond them
    would only take turns.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    quota = _container_quota()
    return max(count if quota is None else min(count, quota), 1)


def _container_quota() -> int | None:
    """Give the processors that a container's quota comes to, rounded up; None without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    with contextlib.suppress(
        OSError, ValueError, ZeroDivisionError
    ):  # version 1 of cgroups; -1 is no limit
        us = int((_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((_CGROUP / "cpu" / "cpu.cfs_period_us").read_text())
        return -(-us // period_us) if us > 0 else None
    return None


def cpu_model() -> str:
    """Name the processor, as its maker calls it."""
    # platform.processor() is empty, or only "x86_64", on most Linux systems.
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
