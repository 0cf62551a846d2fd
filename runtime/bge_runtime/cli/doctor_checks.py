"""The checks of ``bge-runtime doctor``. To add one, write a function and add it to `CHECKS`."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bge_runtime.bundle import Requirement
from bge_runtime.engines import (
    CUDA_PROVIDER,
    INSTALL_GPU,
    TENSORRT_PROVIDER,
    load_engine,
    ort_providers,
    tensorrt,
    unavailable_reason,
)
from bge_runtime.system import cache_folder, multiplies_in_8_bits, nvidia, owners

_INSTALL = "Run `pip install 'bge-runtime[cpu]'`"

PACKAGED_ENGINES = ("onnxruntime", "openvino")
"""Engines that are a package. TensorRT is a library that a provider of onnxruntime uses."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check.

    Attributes:
        text: What was found, and what to do.
        wrong: Whether it has to be fixed; otherwise it is a note.
    """

    text: str
    wrong: bool


def find_problems() -> Iterator[Finding]:
    """List what is wrong with this installation, and what is worth knowing."""
    for check in CHECKS:
        yield from check()


def _check_duplicate_packages() -> Iterator[Finding]:
    for package in PACKAGED_ENGINES:
        if len(names := owners(package)) > 1:
            yield Finding(
                text=f"{' and '.join(names)} are installed side by side and overwrite each "
                f"other's files of {package}. Run `pip uninstall {' '.join(names)}`, then install "
                "the one you want",
                wrong=True,
            )


def _check_missing_engines() -> Iterator[Finding]:
    missing = _missing_engines()
    for name in missing:
        yield Finding(
            text=f"the engine {name} is not installed. {_INSTALL}",
            wrong=len(missing) == len(PACKAGED_ENGINES),
        )


def _check_broken_engines() -> Iterator[Finding]:
    for name in PACKAGED_ENGINES:
        if (reason := _import_failure(name)) is not None:
            yield Finding(text=f"{name} is installed and cannot be imported: {reason}", wrong=True)


def _check_gpus() -> Iterator[Finding]:
    if "onnxruntime" in _missing_engines() or _import_failure("onnxruntime") is not None:
        return
    driver = nvidia.find_driver()
    ort = ort_providers.load()
    available = ort.get_available_providers()
    if CUDA_PROVIDER not in available:
        yield from _check_cpu_package(driver)
    elif isinstance(driver, str):
        yield Finding(text=f"onnxruntime could use a GPU, but {driver}", wrong=False)
    else:
        yield from _check_cuda(driver, ort)
        if (
            TENSORRT_PROVIDER in available
            and tensorrt.version() is None
            and tensorrt.newer_version() is not None
        ):
            yield Finding(
                text=f"TensorRT {tensorrt.newer_version()} is installed, and onnxruntime-gpu "
                f"{ort.__version__} is linked to {tensorrt.LIBRARY}. Run "
                f"`pip install {tensorrt.PACKAGE}`",
                wrong=False,
            )


def _check_cpu_package(driver: nvidia.Driver | str) -> Iterator[Finding]:
    """Check an onnxruntime without CUDA: whether it should have it, or could be replaced."""
    packages = owners("onnxruntime")
    for name, version in packages.items():
        if "gpu" in name:  # nightly builds have other names
            yield Finding(
                text=f"{name} is installed, but its files have no CUDA provider: another package "
                "has overwritten them. Run `pip install --force-reinstall --no-deps "
                f"{name}=={version}`",
                wrong=True,
            )
            return
    if isinstance(driver, nvidia.Driver) and driver.gpus:
        yield Finding(
            text=f"{driver.gpus[0].name} is not used: the installed package, "
            f"{' and '.join(packages) or 'of unknown name'}, has no CUDA provider. To use "
            f"it, {INSTALL_GPU}",
            wrong=False,
        )


def _check_cuda(driver: nvidia.Driver, ort: Any) -> Iterator[Finding]:
    """Check that the driver is new enough and the CUDA provider can be loaded."""
    built = _cuda_of(ort)
    if built is not None and driver.cuda < built:
        yield Finding(
            text=f"the NVIDIA driver {driver.version} supports CUDA {dotted(driver.cuda)}, and "
            f"onnxruntime-gpu {ort.__version__} needs CUDA {dotted(built)}. Install a newer "
            "driver",
            wrong=True,
        )
    elif driver.gpus and (reason := ort_providers.load_failure(CUDA_PROVIDER)) is not None:
        yield Finding(text=f"the GPU is not used: {reason}", wrong=True)


def _check_bf16() -> Iterator[Finding]:
    if "openvino" in _missing_engines():
        return
    if (reason := unavailable_reason(Requirement("openvino", "cpu", "bf16"))) is not None:
        yield Finding(text=f"no 16-bit arithmetic: {reason}; fp32 is used", wrong=False)


def _check_int8() -> Iterator[Finding]:
    if not multiplies_in_8_bits():
        yield Finding(
            text="int8 is no faster than fp32 here, except for single short texts: this processor "
            "has no 8-bit dot products (VNNI, AMX, or ARM's)",
            wrong=False,
        )


def _check_cache() -> Iterator[Finding]:
    name, writable = describe_cache()
    if not writable:
        yield Finding(
            text=f"the cache, {name}, cannot be written: weights are hashed at every start, and "
            "checkpoints cannot be exported on demand. Set XDG_CACHE_HOME",
            wrong=False,
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _check_duplicate_packages,
    _check_missing_engines,
    _check_broken_engines,
    _check_gpus,
    _check_bf16,
    _check_int8,
    _check_cache,
)
"""All checks, in the order of their output."""


def installed_version(engine: str) -> str | None:
    """Return the version of an engine and the package that installed it; None if there is none."""
    found = ", ".join(f"{version} ({name})" for name, version in owners(engine).items())
    if found or importlib.util.find_spec(engine) is None:
        return found or None
    return "unknown"


def describe_cache() -> tuple[str, bool]:
    """Return the path of the cache, and whether it can be written."""
    try:
        folder = cache_folder()
    except OSError as error:
        return f"none ({error})", False
    return str(folder), os.access(_nearest_existing(folder), os.W_OK)


def dotted(version: Sequence[int]) -> str:
    """Return a version as text, such as ``"13.0"``."""
    return ".".join(map(str, version))


def _missing_engines() -> list[str]:
    return [name for name in PACKAGED_ENGINES if installed_version(name) is None]


def _import_failure(engine: str) -> str | None:
    """Return why an installed engine cannot be imported; None if it can, or is not installed."""
    try:
        load_engine(engine)
    except ModuleNotFoundError as error:
        return None if error.name == engine else str(error)
    except Exception as error:  # noqa: BLE001  # such as a missing shared library
        return f"{type(error).__name__}: {error}"
    return None


def _cuda_of(ort: Any) -> tuple[int, ...] | None:
    """Return the CUDA version that onnxruntime was built for; None if it does not say."""
    try:
        information = importlib.import_module(f"{ort.__name__}.capi.build_and_package_info")
        return tuple(int(part) for part in str(information.cuda_version).split(".")[:2])
    except (ImportError, AttributeError, ValueError):
        return None


def _nearest_existing(path: os.PathLike[str]) -> str:
    """Return the path itself or the nearest folder above it that exists."""
    folder = os.fspath(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return folder
