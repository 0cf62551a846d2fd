"""Which engine runs a variant, and how it is opened."""

from __future__ import annotations

from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines.base import Engine, EngineOptions
from bge_runtime.engines.openvino import OpenVinoEngine
from bge_runtime.engines.ort import OrtEngine
from bge_runtime.engines.ort_cuda import OrtCudaEngine
from bge_runtime.engines.tensorrt import TensorRtEngine
from bge_runtime.errors import DeviceError, EngineError

ENGINES: dict[str, type[OrtEngine | OpenVinoEngine]] = {
    "onnxruntime": OrtEngine,
    "openvino": OpenVinoEngine,
    "tensorrt": TensorRtEngine,
}
"""Every engine of this version, by name."""

_ON_CUDA: dict[str, type[OrtEngine]] = {"onnxruntime": OrtCudaEngine}
"""Those that another class runs on a GPU."""

_MOST_THREADS = 1024
"""With 100,000 an engine opens for minutes in which no signal is heard, and takes 16 GB."""


def open_engine(
    bundle: Bundle,
    variant: Variant,
    options: EngineOptions = EngineOptions(),  # noqa: B008  # frozen
) -> Engine:
    """Open one variant of a bundle.

    Raises:
        ValueError: If there are too few or too many threads.
        EngineError: If this version has no such engine, it runs elsewhere than
            the variant says, or it has no CUDA graphs or no streams.
        EngineNotInstalledError: If the engine's package is missing.
    """
    threads = options.threads
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        limit = "at least 1" if threads < 1 else f"at most {_MOST_THREADS}"
        raise ValueError(f"threads must be {limit}, but is {threads}")
    engine = _engine(variant)
    if options.cuda_graph_variant is not None:
        require_cuda_graphs(variant)
    if options.streams > 1 and not engine.has_streams:
        raise EngineError(
            f"requested streams={options.streams}, which OpenVINO has, but variant "
            f"{variant.name!r} is {variant.engine}'s, which needs none. Leave it out"
        )
    return engine(bundle, variant, options)


def require_cuda_graphs(variant: Variant) -> None:
    """Raise EngineError unless the engine of a variant can run texts as CUDA graphs."""
    if not _engine(variant).has_cuda_graphs:
        raise EngineError(
            f"requested cuda_graphs, which ONNX Runtime has on a GPU, but variant "
            f"{variant.name!r} is {variant.engine}'s on {variant.device}. Pass devices='cuda', or "
            "leave it out"
        )


def unavailable_reason(variant: Variant) -> str | None:
    """Tell why this machine cannot run a variant; None if it can.

    Raises:
        EngineError: If this version has no such engine.
    """
    return _engine(variant).unavailable_reason(variant)


def _engine(variant: Variant) -> type[OrtEngine | OpenVinoEngine]:
    try:
        by_name = ENGINES[variant.engine]
    except KeyError:
        raise EngineError(
            f"variant {variant.name!r} needs the engine {variant.engine!r}; this bge-runtime "
            f"has {', '.join(ENGINES)}. Run `pip install -U bge-runtime`"
        ) from None
    return _ON_CUDA.get(variant.engine, by_name) if variant.device == "cuda" else by_name


def device_kind(device: str) -> str:
    """Give the kind of a device: ``"cuda"`` for ``"cuda:1"``.

    Raises:
        DeviceError: If the name has another form, or names a second CPU.
    """
    kind, colon, index = device.partition(":")
    if not kind.isalpha() or (colon and not index.isdecimal()):
        raise DeviceError(f"unknown device {device!r}; use a name such as 'cpu' or 'cuda:0'")
    if kind == "cpu" and index not in ("", "0"):
        raise DeviceError(f"unknown device {device!r}; all processors are the one device 'cpu'")
    return kind
