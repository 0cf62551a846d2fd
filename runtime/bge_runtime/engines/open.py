"""Which engine runs a variant, and how it is opened."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from bge_runtime.bundle import SENTENCE_EMBEDDING, Bundle, Variant
from bge_runtime.engines.base import Engine
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
    *,
    device: str | None = None,
    threads: int | None = None,
    outputs: Sequence[str] = (SENTENCE_EMBEDDING,),
    cuda_graphs: bool = False,
    runs: int = 1,
) -> Engine:
    """Open one variant of a bundle.

    Args:
        bundle: The bundle.
        variant: One of its variants.
        device: Device of its kind to open it on, such as ``"cuda:1"``; None for the first.
        threads: Threads to compute with; None for all that the process may use.
        outputs: Outputs that will be asked for. Others may be as well, which takes an
            engine that compiles its graphs the time of another start.
        cuda_graphs: Run single short texts as CUDA graphs; see
            `bge_runtime.engines.ort_cuda.OrtCudaEngine`.
        runs: Batches to compute side by side with an equal share of the threads each, on OpenVINO.
            ONNX Runtime on a CPU shares out its threads as batches come.

    Raises:
        EngineError: If this version has no such engine, it runs elsewhere than
            the variant says, or has no CUDA graphs or no ``runs`` to open it with.
        EngineNotInstalledError: If the engine's package is missing.
    """
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        limit = "at least 1" if threads < 1 else f"at most {_MOST_THREADS}"
        raise ValueError(f"threads must be {limit}, but is {threads}")
    index = int((device or "").partition(":")[2] or 0)
    opened_by: Callable[..., Engine] = _engine(variant)
    if cuda_graphs and opened_by is not OrtCudaEngine:
        raise EngineError(
            f"requested cuda_graphs, which ONNX Runtime has on a GPU, but variant {variant.name!r} "
            f"is {variant.engine}'s on {variant.device}. Pass devices='cuda', or leave it out"
        )
    if cuda_graphs:
        opened_by = functools.partial(OrtCudaEngine, cuda_graphs=True)
    if runs > 1:
        if opened_by is not OpenVinoEngine:
            raise EngineError(
                f"requested runs={runs}, which OpenVINO is opened with, but variant "
                f"{variant.name!r} is {variant.engine}'s, which needs no such thing. Leave it out"
            )
        opened_by = functools.partial(opened_by, runs=runs)
    return opened_by(bundle, variant, index=index, threads=threads, outputs=outputs)


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
