"""The table of engines, and the one that runs a variant.

To add an engine, see the docstring of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines.base import Engine, EngineClass, EngineOptions
from bge_runtime.engines.openvino import OpenVinoEngine
from bge_runtime.engines.ort_cpu import OrtCpuEngine
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.engines.tensorrt import TensorRtEngine
from bge_runtime.errors import DeviceError, EngineError

ENGINES: Mapping[str, Mapping[str, EngineClass]] = {
    "onnxruntime": {"cpu": OrtCpuEngine, "cuda": OrtCudaEngine},
    "openvino": {"cpu": OpenVinoEngine},
    "tensorrt": {"cuda": TensorRtEngine},
}
"""Every engine of this version by name: the class for each kind of device."""

_MOST_THREADS = 1024
"""With 100,000 an engine takes 16 GB and minutes to open, and no signal interrupts it."""


def open_engine(
    bundle: Bundle,
    variant: Variant,
    options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
) -> Engine:
    """Open one variant of a bundle.

    Raises:
        ValueError: If there are too few or too many threads.
        DeviceError: If the engine does not serve the variant's device.
        EngineError: If this version has no such engine, it runs elsewhere than
            the variant says, or it has no CUDA graphs or no streams.
        EngineNotInstalledError: If the engine's package is missing.
    """
    threads = options.threads
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        limit = "at least 1" if threads < 1 else f"at most {_MOST_THREADS}"
        raise ValueError(f"threads must be {limit}, but is {threads}")
    engine_class = _engine_class(variant)
    if options.cuda_graph_variant is not None:
        require_cuda_graphs(variant)
    if options.streams > 1 and not engine_class.has_streams:
        raise EngineError(
            f"requested streams={options.streams}, which OpenVINO has, but variant "
            f"{variant.name!r} is {variant.engine}'s, which needs none. Leave it out"
        )
    return engine_class(bundle, variant, options)


def require_cuda_graphs(variant: Variant) -> None:
    """Raise EngineError unless the engine of a variant can run texts as CUDA graphs."""
    if not _engine_class(variant).has_cuda_graphs:
        raise EngineError(
            f"requested cuda_graphs, which ONNX Runtime has on a GPU, but variant "
            f"{variant.name!r} is {variant.engine}'s on {variant.device}. Pass devices='cuda', or "
            "leave it out"
        )


def unavailable_reason(variant: Variant) -> str | None:
    """Return why this machine cannot run a variant, or None if it can.

    Raises:
        EngineError: If this version has no such engine.
    """
    by_device = _classes(variant)
    if variant.device not in by_device:
        return f"this version's {_served(variant)}"
    return by_device[variant.device].unavailable_reason(variant)


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


def _engine_class(variant: Variant) -> EngineClass:
    by_device = _classes(variant)
    if variant.device not in by_device:
        raise DeviceError(
            f"requested device {variant.device!r}, but this version's {_served(variant)}"
        )
    return by_device[variant.device]


def _classes(variant: Variant) -> Mapping[str, EngineClass]:
    try:
        return ENGINES[variant.engine]
    except KeyError:
        raise EngineError(
            f"variant {variant.name!r} needs the engine {variant.engine!r}; this bge-runtime "
            f"has {', '.join(ENGINES)}. Run `pip install -U bge-runtime`"
        ) from None


def _served(variant: Variant) -> str:
    return f"{variant.engine} engine serves {', '.join(ENGINES[variant.engine])} only"
