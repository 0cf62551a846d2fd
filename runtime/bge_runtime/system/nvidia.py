"""NVIDIA's driver and the GPUs that it reports.

Only libraries of the driver itself are used, so this works even if no Python package for GPUs is
installed or works.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DRIVER_LIBRARY = "libcuda.so.1"
"""The driver's own library. If it is missing, there is no driver."""

_VERSION_FILE = Path("/sys/module/nvidia/version")
_MAJOR, _MINOR = 75, 76
"""``CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*`` of CUDA's driver API."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that a process may use.

    Attributes:
        name: Name that the driver reports.
        compute_capability: Such as ``"9.0"``.
        memory_bytes: All of its memory.
    """

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Driver:
    """NVIDIA's driver and the GPUs that it reports.

    Attributes:
        version: Version of the driver, such as ``"580.65.06"``; ``"unknown"`` except on Linux.
        cuda: Newest CUDA version that it supports, such as ``(13, 0)``.
        gpus: GPUs in the order of their numbers, without those that ``CUDA_VISIBLE_DEVICES``
            hides.
    """

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def find_driver() -> Driver | str:
    """Return the driver and its GPUs, or a string that says why there is no usable driver."""
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return f"this machine has no NVIDIA driver ({DRIVER_LIBRARY})"
    number = ctypes.c_int()
    try:
        library.cuDriverGetVersion(ctypes.byref(number))
        status = library.cuInit(0)
        if status != 0:
            return f"the NVIDIA driver fails to start (cuInit returned error {status})"
        cuda = divmod(number.value // 10, 100)
        return Driver(version=_version(), cuda=cuda, gpus=tuple(_gpus(library)))
    except AttributeError as error:  # another library of the same name
        return f"{DRIVER_LIBRARY} is not NVIDIA's driver: {error}"


def _gpus(library: ctypes.CDLL) -> Iterator[Gpu]:
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, size = ctypes.c_int(), ctypes.c_size_t()
        name = ctypes.create_string_buffer(256)
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        capability = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            capability.append(str(value.value))
        yield Gpu(
            name=name.value.decode(errors="replace"),
            compute_capability=".".join(capability),
            memory_bytes=size.value,
        )


def _version() -> str:
    with contextlib.suppress(OSError):
        return _VERSION_FILE.read_text(encoding="utf-8").strip()
    return "unknown"
