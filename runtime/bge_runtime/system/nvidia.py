"""What NVIDIA's driver says of the GPUs here, asked without any package.

The libraries are those that the driver itself installs, so that this works, and says what is
wrong, where nothing else does.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DRIVER_LIBRARY = "libcuda.so.1"
"""The driver's own library: where it is missing there is no driver."""

_VERSION_FILE = Path("/sys/module/nvidia/version")
_MAJOR, _MINOR = 75, 76
"""``CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*`` of CUDA's driver API."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that a process may use.

    Attributes:
        name: As the driver calls it.
        compute_capability: Such as ``"9.0"``.
        memory_bytes: All of its memory.
    """

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Driver:
    """NVIDIA's driver and its GPUs.

    Attributes:
        version: Its own version, such as ``"580.65.06"``; ``"unknown"`` off Linux.
        cuda: Newest CUDA that it serves, such as ``(13, 0)``.
        gpus: GPUs in the order in which they are numbered, those that
            ``CUDA_VISIBLE_DEVICES`` hides left out.
    """

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def find_driver() -> Driver | str:
    """Ask the driver what there is; a string tells why it cannot be asked."""
    try:
        library = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return f"this machine has no NVIDIA driver ({DRIVER_LIBRARY})"
    number = ctypes.c_int()
    try:
        library.cuDriverGetVersion(ctypes.byref(number))
        status = library.cuInit(0)
        if status != 0:
            return f"the NVIDIA driver refuses to start (cuInit gave error {status})"
        cuda = divmod(number.value // 10, 100)
        return Driver(version=_version(), cuda=cuda, gpus=tuple(_gpus(library)))
    except AttributeError as error:  # a library that only bears the name
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
