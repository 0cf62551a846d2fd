"""Engines: what runs a bundle's graphs.

An engine is small on purpose: it opens one graph on one device, runs token arrays
and gives named outputs. To add one, write a module with a class that satisfies
`Engine` and tells with ``why_not`` what it cannot run here, and give it a row in
``_ENGINES``. Its package is imported when it is used, never before.
"""

from __future__ import annotations

from bge_runtime.bundle import Bundle
from bge_runtime.engines.base import Engine, EngineInfo
from bge_runtime.engines.ort import OrtEngine
from bge_runtime.engines.ov import OpenVinoEngine
from bge_runtime.errors import BundleError, DeviceError, EngineError, PrecisionError
from bge_runtime.manifest import Variant

__all__ = ["Engine", "EngineInfo", "device_kind", "open_engine", "select_variant", "why_not"]

_ENGINES: dict[str, type[OrtEngine | OpenVinoEngine]] = {
    "onnxruntime": OrtEngine,
    "openvino": OpenVinoEngine,
}


def open_engine(bundle: Bundle, variant: Variant, *, threads: int | None = None) -> Engine:
    """Open one variant of a bundle.

    Args:
        bundle: The bundle.
        variant: One of its variants.
        threads: Threads to compute with; None for all that the process may use.

    Raises:
        EngineError: If this version has no such engine, or it runs elsewhere than
            the variant says.
        EngineNotInstalledError: If the engine's package is missing.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, but is {threads}")
    return _engine(variant)(bundle, variant, threads=threads)


def why_not(variant: Variant) -> str | None:
    """Tell why this machine cannot run a variant; None if it can.

    Raises:
        EngineError: If this version has no such engine.
    """
    return _engine(variant).why_not(variant)


def _engine(variant: Variant) -> type[OrtEngine | OpenVinoEngine]:
    try:
        return _ENGINES[variant.engine]
    except KeyError:
        raise EngineError(
            f"variant {variant.name!r} needs the engine {variant.engine!r}; this bge-runtime "
            f"has {', '.join(_ENGINES)}. Run `pip install -U bge-runtime`"
        ) from None


def select_variant(
    bundle: Bundle, *, device: str, engine: str = "auto", precision: str = "auto"
) -> Variant:
    """Choose the variant to run on a device.

    Variants are listed in the bundle in order of preference; the first one that this
    machine can run is chosen. One whose parity was never measured is not chosen unless
    its precision is asked for by name.

    Args:
        bundle: The bundle.
        device: A device, such as ``"cpu"`` or ``"cuda:1"``.
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision, or ``"auto"``.

    Raises:
        BundleError: If the bundle has no variants at all.
        DeviceError: If the bundle has nothing for that kind of device.
        EngineError: If it has nothing for that engine.
        PrecisionError: If it has nothing of that precision.
    """
    kind = device_kind(device)
    if not bundle.manifest.variants:
        raise BundleError(
            f"the bundle {bundle.path.name} has no variants. Export it again with "
            "bge-export --force"
        )
    found = [variant for variant in bundle.manifest.variants if variant.device == kind]
    if not found:
        kinds = sorted({variant.device for variant in bundle.manifest.variants})
        raise DeviceError(
            f"requested device {device!r}, but the bundle {bundle.path.name} has variants for "
            f"{', '.join(kinds)} only. Pass devices={kinds[0]!r}"
        )
    if engine != "auto":
        if engine not in _ENGINES:
            raise EngineError(
                f"unknown engine {engine!r}; this bge-runtime has auto, {', '.join(_ENGINES)}"
            )
        others = sorted({variant.engine for variant in found})
        found = [variant for variant in found if variant.engine == engine]
        if not found:
            raise EngineError(
                f"requested engine {engine!r} on {device}, but the bundle {bundle.path.name} "
                f"has variants for {', '.join(others)} there. Pass engine={others[0]!r}"
            )
    if precision == "auto":
        found = [variant for variant in found if variant.parity is not None]
    else:
        others = sorted({variant.precision for variant in found})
        found = [variant for variant in found if variant.precision == precision]
        if not found:
            raise PrecisionError(
                f"requested precision {precision!r} on {device}, but the bundle "
                f"{bundle.path.name} has {', '.join(others)} there. Pass "
                f"precision={others[0]!r}, or leave it out"
            )
    if not found:
        raise PrecisionError(
            f"the bundle {bundle.path.name} has no variant for {device} whose parity was "
            "measured. Export it again with bge-export --force"
        )
    # Opening one that cannot run says exactly what is missing.
    return next((variant for variant in found if why_not(variant) is None), found[0])


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
