"""How much memory is left to this process."""

from __future__ import annotations

import contextlib
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMORY_INFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Give the bytes that can be taken without swapping, a container's limit included.

    Returns:
        None where the system does not say: on macOS and Windows.
    """
    left = [bytes_ for bytes_ in (_of_machine(), _of_container()) if bytes_ is not None]
    return min(left, default=None)


def _of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_container() -> int | None:
    """Give what a container's limit leaves; None without a limit."""
    for folder, limit, used, idle in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (
            _CGROUP / "memory",  # version 1 of cgroups
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())  # "max", or a huge number, is no limit
            taken = int((folder / used).read_text())
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # Files that nobody has read lately count as used, and are let go of on demand.
            return most - taken + int(facts.get(idle, 0))
    return None
