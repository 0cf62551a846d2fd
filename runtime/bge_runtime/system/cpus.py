"""The processor: its model, its instruction sets, and how much of it this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from bge_runtime.system.cgroups import own_groups

_CPU_INFO = Path("/proc/cpuinfo")

_PRODUCTS_IN_8_BITS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
"""Any of these has one instruction to multiply and sum 8-bit integers."""

_EXTENSIONS = _PRODUCTS_IN_8_BITS | {
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx10_1", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "bf16", "sve", "sve2"),
}
"""CPU flags that decide which kernels an engine uses, as Linux names them on x86-64 and ARM."""


def usable_cpus() -> int:
    """Return the number of processors that this process may use.

    It respects the affinity mask, which also reflects a container's cpuset, and the CPU quotas of
    this process's control groups. More threads than that would only take turns.
    """
    return max(min([allowed_cpus(), *_quotas()]), 1)


def allowed_cpus() -> int:
    """Return the number of processors on which this process may run, whatever its quotas."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def default_threads() -> int:
    """Return the default number of threads: `usable_cpus`, or fewer.

    Operators limit the libraries in a container with ``OMP_NUM_THREADS``, which PyTorch obeys too.
    If it is a list with a number for each level of nesting, the first one counts.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limit = int(asked) if asked.isdecimal() else 0
    return min(usable_cpus(), limit) if limit > 0 else usable_cpus()


def _quotas() -> Iterator[int]:
    """List the number of processors that each quota allows, rounded up."""
    for version, group in own_groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:  # "max" means no limit
                quota, period = (group / "cpu.max").read_text().split()
            else:  # -1 means no limit
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                yield -(-int(quota) // int(period))


def cpu_model() -> str:
    """Return the name that the manufacturer gave the processor."""
    # platform.processor() is empty, or only "x86_64", on most Linux systems.
    return _cpu_info("model name") or platform.processor() or platform.machine()


def vector_extensions() -> tuple[str, ...]:
    """Return the processor's instruction sets that affect speed and rounding.

    The processor's name is not enough, since virtual machines may hide it.

    Returns:
        Linux's names, such as ``"avx2"`` and ``"avx512_bf16"``, sorted; empty on other systems.
    """
    flags = _cpu_info("flags") or _cpu_info("Features") or ""
    return tuple(sorted(_EXTENSIONS.intersection(flags.split())))


def multiplies_in_8_bits() -> bool:
    """Return whether int8 is faster than fp32 here; also True if the system does not say.

    With AVX2 alone, int8 was no faster on 8 x 128 tokens of bge-base (2.3 and 3.5 s on the two
    engines, 2.3 s in fp32), and at best an eighth faster on 1 x 8 tokens (32 ms, 36 ms in fp32).
    """
    extensions = vector_extensions()
    return not extensions or not _PRODUCTS_IN_8_BITS.isdisjoint(extensions)


def _cpu_info(field: str) -> str | None:
    """Return a field of the first processor in ``/proc/cpuinfo``; None if there is none."""
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return None
