"""How much memory this process may still use, and how much it has held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bge_runtime.system.cgroups import own_groups

_MEMORY_INFO = Path("/proc/meminfo")
_OWN_STATUS = Path("/proc/self/status")

_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    # Above "high" the kernel slows the process down until it hardly runs.
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}
"""By version of control groups: files of the limits and the usage, and a ``memory.stat`` field."""


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping, within control group limits.

    Returns:
        None on macOS and Windows.
    """
    machine = _of_machine()
    return min([*([] if machine is None else [machine]), *_of_groups()], default=None)


def peak_memory() -> int | None:
    """Return the most bytes that this process has held, mapped files included.

    Returns:
        None on macOS and Windows. Elsewhere ``ru_maxrss`` would do less: it survives ``exec``, so a
        process would start with the peak of its parent.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _OWN_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_groups() -> Iterator[int]:
    """List the bytes left by each limit of this process's control group and those above it."""
    for version, group in own_groups("memory"):
        limits, usage, inactive = _FILES[version]
        with contextlib.suppress(OSError, ValueError):
            used = int((group / usage).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Cached files that were not read lately count as used, but are freed on demand.
            used -= int(stat.get(inactive, 0))
            for limit in limits:
                with contextlib.suppress(OSError, ValueError):  # "max" means no limit
                    yield max(int((group / limit).read_text()) - used, 0)
