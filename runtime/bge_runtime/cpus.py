"""The processors: which they are, and how many of them this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPU_INFO = Path("/proc/cpuinfo")

_PRODUCTS_IN_8_BITS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Any of these multiplies and sums 8-bit numbers in one instruction."""

_EXTENSIONS = _PRODUCTS_IN_8_BITS | {
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx10_1", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "bf16", "sve", "sve2"),
}
"""What decides which kernels an engine takes, as Linux names it on x86-64 and ARM."""


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
    return _cpu_info("model name") or platform.processor() or platform.machine()


def vector_extensions() -> tuple[str, ...]:
    """List what the processor can do that decides how fast and how exactly it computes.

    Two processors may bear one name: a virtual machine calls all of a maker's alike.

    Returns:
        Linux's names such as ``"avx2"`` and ``"avx512_bf16"``, sorted; empty where the system
        does not say.
    """
    flags = _cpu_info("flags") or _cpu_info("Features") or ""
    return tuple(sorted(_EXTENSIONS.intersection(flags.split())))


def multiplies_in_8_bits() -> bool:
    """Tell whether int8 is faster than fp32 here; yes where the system does not say.

    Without such products both engines were slower in it with AVX2 (bge-base, 8 x 128 tokens: 2.3
    and 3.5 s, 2.3 in fp32), and at best an eighth faster (1 x 8 tokens: 32 ms, 36 in fp32).
    """
    extensions = vector_extensions()
    return not extensions or not _PRODUCTS_IN_8_BITS.isdisjoint(extensions)


def _cpu_info(field: str) -> str | None:
    """Read a field of the first processor's; None where there is none."""
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return None
