"""How much memory is left to this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bge_runtime.system.cgroups import own_groups

_MEMORY_INFO = Path("/proc/meminfo")

_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    # Above "high" a process is slowed down until it is as good as stopped.
    2: (("memory.max", "memory.high"), "memory.current", "inactive_file"),
}
"""By version of control groups: files of limits and of use, and a field of ``memory.stat``."""


def available_memory() -> int | None:
    """Return the bytes that can be taken without swapping, limits of control groups included.

    Returns:
        None where the system does not say: on macOS and Windows.
    """
    machine = _of_machine()
    return min([*([] if machine is None else [machine]), *_of_groups()], default=None)


def _of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_groups() -> Iterator[int]:
    """List what each limit leaves: of this process's control group, and of those above it."""
    for version, group in own_groups("memory"):
        limits, used, idle = _FILES[version]
        with contextlib.suppress(OSError, ValueError):
            taken = int((group / used).read_text())
            facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Files that nobody has read lately count as used, and are let go of on demand.
            taken -= int(facts.get(idle, 0))
            for limit in limits:
                with contextlib.suppress(OSError, ValueError):  # "max" is none, and no number
                    yield max(int((group / limit).read_text()) - taken, 0)
