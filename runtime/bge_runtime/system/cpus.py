"""The processors: which they are, and how many of them this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from bge_runtime.system.cgroups import own_groups

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

    The affinity mask, to which a container's set of processors comes down, and the CPU quotas of
    this process's control groups count: threads beyond them would only take turns.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    return max(min([count, *_quotas()]), 1)


def default_threads() -> int:
    """Return how many threads compute where nobody said: `usable_cpus`, or fewer.

    ``OMP_NUM_THREADS`` is how operators keep libraries of a container to a share of it, and
    PyTorch obeys it. Of a list, one for each level of nesting, the first counts.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limit = int(asked) if asked.isdecimal() else 0
    return min(usable_cpus(), limit) if limit > 0 else usable_cpus()


def _quotas() -> Iterator[int]:
    """List the processors that each quota comes to, rounded up."""
    for version, group in own_groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:  # "max" is no limit, and no number
                quota, period = (group / "cpu.max").read_text().split()
            else:  # -1 is none
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                yield -(-int(quota) // int(period))


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
