"""The table of engines, and the one that runs a variant.

To add an engine, see the docstring of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bge_runtime.bundle import TOLERANCES, Bundle, Requirement, Variant
from bge_runtime.engines.base import Engine, EngineClass, EngineOptions
from bge_runtime.engines.openvino import OpenVinoEngine
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.engines.tensorrt import TensorRtEngine
from bge_runtime.errors import DeviceError, EngineError, PrecisionError

ENGINES: Mapping[str, Mapping[str, EngineClass]] = {
    "onnxruntime": {"cpu": OrtCpuEngine, "cuda": OrtCudaEngine},
    "openvino": {"cpu": OpenVinoEngine},
    "tensorrt": {"cuda": TensorRtEngine},
}
"""Every engine of this version by name: the class for each kind of device."""

_MOST_THREADS = 1024
"""With 100,000 an engine takes 16 GB and minutes to open, and no signal interrupts it."""

_UPDATE = "run `pip install -U bge-runtime`"


def open_engine(
    bundle: Bundle,
    variant: Variant,
    options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
) -> Engine:
    """Open one variant of a bundle.

    Raises:
        ValueError: If there are too few or too many threads.
        DeviceError: If the engine does not serve the variant's device.
        PrecisionError: If this version has no such precision, or the processor does not compute
            in it.
        EngineError: If this version has no such engine, it runs elsewhere than
            the variant says, or it has no CUDA graphs or no streams.
        EngineNotInstalledError: If the engine's package is missing.
    """
    threads = options.threads
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        limit = "at least 1" if threads < 1 else f"at most {_MOST_THREADS}"
        raise ValueError(f"threads must be {limit}, but is {threads}")
    engine_class = _find_class(variant.requirement)
    if options.cuda_graph_variant is not None:
        require_cuda_graphs(variant)
    if options.streams > 1 and not engine_class.accepts_streams:
        able = _engines_with(lambda each: each.accepts_streams)
        raise EngineError(
            f"requested streams={options.streams}, but variant {variant.name!r} is "
            f"{variant.engine}'s on {variant.device}. Leave it out, or open one with {able}"
        )
    return engine_class(bundle, variant, options)


def require_cuda_graphs(variant: Variant) -> None:
    """Raise EngineError unless the engine of a variant can run texts as CUDA graphs."""
    if not _find_class(variant.requirement).has_cuda_graphs:
        able = _engines_with(lambda each: each.has_cuda_graphs)
        raise EngineError(
            f"requested cuda_graphs, but variant {variant.name!r} is {variant.engine}'s on "
            f"{variant.device}. Pass {able}, or leave it out"
        )


def unavailable_reason(requirement: Requirement) -> str | None:
    """Return why this machine cannot run a variant, or None if it can.

    The variant may be one of a newer bge-runtime, whose engine, device or precision is unknown.
    """
    try:
        engine_class = _find_class(requirement)
    except EngineError as error:
        return str(error)
    return engine_class.unavailable_reason(requirement.precision)


def engine_package(name: str) -> str:
    """Return the name of the package that an engine imports."""
    return next(iter(ENGINES[name].values())).package


def load_engine(name: str) -> Any:
    """Import the package of an engine, without its telemetry, and return it."""
    return next(iter(ENGINES[name].values())).load()


def device_kind(device: str) -> str:
    """Return the kind of a device: ``"cuda"`` for ``"cuda:1"``.

    Raises:
        DeviceError: If the name has another form, or names a second CPU.
    """
    kind, colon, index = device.partition(":")
    if not kind.isalpha() or (colon and not index.isdecimal()):
        raise DeviceError(f"unknown device {device!r}; use a name such as 'cpu' or 'cuda:0'")
    if kind == "cpu" and index not in ("", "0"):
        raise DeviceError(f"unknown device {device!r}; all processors are the one device 'cpu'")
    return kind


def _find_class(requirement: Requirement) -> EngineClass:
    """Return the class of an engine on a device.

    Raises:
        EngineError: If this version has no such engine; `DeviceError` or `PrecisionError` if the
            engine has no such device or precision.
    """
    engine, device, precision = requirement
    if engine not in ENGINES:
        raise EngineError(
            f"this bge-runtime has no engine {engine!r}, only {', '.join(ENGINES)}; {_UPDATE}"
        )
    if device not in ENGINES[engine]:
        raise DeviceError(
            f"this version's {engine} engine serves {', '.join(ENGINES[engine])} only, not "
            f"{device!r}; {_UPDATE}"
        )
    if precision not in TOLERANCES:
        raise PrecisionError(
            f"this bge-runtime has no precision {precision!r}, only {', '.join(TOLERANCES)}; "
            f"{_UPDATE}"
        )
    return ENGINES[engine][device]


def _engines_with(feature: Callable[[EngineClass], bool]) -> str:
    """Return the arguments that choose an engine with a feature, for error messages."""
    return " or ".join(
        f"engine={name!r} and devices={device!r}"
        for name, by_device in ENGINES.items()
        for device, engine_class in by_device.items()
        if feature(engine_class)
    )
