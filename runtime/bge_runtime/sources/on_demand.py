"""Which graphs an export on the spot writes, by what they are to be run with.

The exporter's own table is `bge_export.targets`, which needs its packages. This one has no more
than it takes to ask for the right graphs, and to refuse in time what no export brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bge_runtime.bundle import Variant
from bge_runtime.engines import ENGINES, device_kind, unavailable_reason
from bge_runtime.errors import DeviceError, EngineError, PrecisionError
from bge_runtime.sources.registry import DECODER_CLASSES, ENCODER_ONLY_M3


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a model is to be run.

    Attributes:
        devices: Names of devices.
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision, or ``"auto"``.
    """

    devices: Sequence[str] = ("cpu",)
    engine: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class _Way:
    device: str
    engine: str
    precision: str
    target: str
    unasked: bool = False


_ENCODERS = (
    _Way("cpu", "onnxruntime", "fp32", "cpu", unasked=True),
    _Way("cpu", "openvino", "bf16", "openvino", unasked=True),
    _Way("cpu", "openvino", "fp32", "cpu", unasked=True),
    _Way("cpu", "openvino", "int8", "cpu"),
    _Way("cpu", "onnxruntime", "int8", "cpu"),
    _Way("cuda", "onnxruntime", "fp16", "cuda"),
    _Way("cuda", "tensorrt", "fp16", "tensorrt"),
)

# ONNX Runtime would hold one score for each pair of the tokens that M3 reads.
_M3 = tuple(way for way in _ENCODERS if (way.engine, way.precision) != ("onnxruntime", "int8"))

_DECODERS = (
    _Way("cpu", "onnxruntime", "fp32", "cpu", unasked=True),
    _Way("cpu", "openvino", "bf16", "cpu", unasked=True),
    _Way("cpu", "openvino", "int8", "cpu"),
    _Way("cpu", "onnxruntime", "int8", "cpu"),
    _Way("cpu", "openvino", "int4", "cpu"),
    _Way("cpu", "onnxruntime", "int4", "cpu"),
    _Way("cuda", "onnxruntime", "bf16", "cuda"),
    _Way("cuda", "onnxruntime", "fp16", "cuda"),
    _Way("cuda", "tensorrt", "bf16", "tensorrt"),
)
"""In the order of preference where nothing is asked for."""


def graphs_for(use: Use, model_class: str | None) -> tuple[str, ...]:
    """Choose the exporter's options for graphs that can be run as asked.

    Args:
        use: How the model is to be run.
        model_class: FlagEmbedding's class; None for an encoder whose class is not known.

    Returns:
        ``--target`` and ``--precision`` options; none where a plain export brings the graphs.

    Raises:
        DeviceError: If no graph of such a model runs on the device.
        EngineError: If none does on the engine; or this machine lacks what they run on.
        PrecisionError: If none is of the precision.
    """
    if use.engine not in ("auto", *ENGINES):
        raise EngineError(
            f"unknown engine {use.engine!r}; this bge-runtime has auto, {', '.join(ENGINES)}"
        )
    decoder = model_class in DECODER_CLASSES
    table = _DECODERS if decoder else _M3 if model_class == ENCODER_ONLY_M3 else _ENCODERS
    chosen = [_choose(table, device, use) for device in dict.fromkeys(use.devices)]
    if all(way.unasked for way in chosen):
        return ()
    pairs = dict.fromkeys((way.target, way.precision) for way in chosen)
    return tuple(
        word
        for target, precision in pairs
        for word in ("--target", target, "--precision", precision)
    )


def _choose(table: Sequence[_Way], device: str, use: Use) -> _Way:
    ways = [way for way in table if way.device == device_kind(device)]
    if not ways:
        raise DeviceError(
            f"requested device {device!r}, and models of this kind are exported for "
            f"{_listed(way.device for way in table)}"
        )
    by_engine = [way for way in ways if use.engine in ("auto", way.engine)]
    if not by_engine:
        raise EngineError(
            f"requested engine {use.engine!r} on {device}, and models of this kind are exported "
            f"for {_listed(way.engine for way in ways)} there"
        )
    found = [way for way in by_engine if use.precision in ("auto", way.precision)]
    if not found:
        raise PrecisionError(
            f"requested precision {use.precision!r} on {device}"
            + (f" and engine {use.engine!r}" if use.engine != "auto" else "")
            + f", and models of this kind are exported in "
            f"{_listed(way.precision for way in by_engine)} for that"
        )
    reasons: dict[str, None] = {}
    for way in found:
        reason = unavailable_reason(
            Variant(
                name=f"{way.engine}-{way.precision}",
                graph="",
                engine=way.engine,
                device=way.device,
                precision=way.precision,
                parity=None,
            )
        )
        if reason is None:
            return way
        reasons[reason] = None
    raise EngineError(
        f"requested device {device!r}, engine {use.engine!r} and precision {use.precision!r}, but "
        f"{'; '.join(reasons)}. Nothing was exported; see `bge-runtime doctor`"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
