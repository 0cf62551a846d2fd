"""Which graphs an on-demand export writes, depending on how the model will be run.

The exporter's own table is `bge_export.targets`, which needs PyTorch. This table is enough to ask
for the right graphs, and to reject what no export can provide. A new target needs a row here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bge_runtime.bundle import Requirement
from bge_runtime.engines import ENGINES, device_kind, unavailable_reason
from bge_runtime.errors import DeviceError, EngineError, PrecisionError
from bge_runtime.sources.model_classes import DECODER_CLASSES, ENCODER_ONLY_M3, RERANKER_DECODER


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a model will be run.

    Attributes:
        devices: Names of devices.
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision, or ``"auto"``.
    """

    devices: Sequence[str] = ("cpu",)
    engine: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class _Option:
    """One way to run a model, and the export target that it needs.

    Attributes:
        device: Kind of device.
        engine: Name of an engine.
        precision: Name of a precision.
        target: Name of the export target.
        by_default: Whether a plain export writes the graph.
    """

    device: str
    engine: str
    precision: str
    target: str
    by_default: bool = False


_ENCODERS = (
    _Option("cpu", "onnxruntime", "fp32", "cpu", by_default=True),
    _Option("cpu", "openvino", "bf16", "openvino", by_default=True),
    _Option("cpu", "openvino", "fp32", "cpu", by_default=True),
    _Option("cpu", "openvino", "int8", "cpu"),
    _Option("cpu", "onnxruntime", "int8", "cpu"),
    _Option("cuda", "onnxruntime", "fp16", "cuda"),
    _Option("cuda", "tensorrt", "fp16", "tensorrt"),
)

# In int8, ONNX Runtime would store a score for each pair of M3's up to 8192 tokens.
_M3 = tuple(each for each in _ENCODERS if (each.engine, each.precision) != ("onnxruntime", "int8"))

_DECODERS = (
    _Option("cpu", "onnxruntime", "fp32", "cpu", by_default=True),
    _Option("cpu", "openvino", "bf16", "cpu", by_default=True),
    _Option("cpu", "openvino", "int8", "cpu"),
    _Option("cpu", "onnxruntime", "int8", "cpu"),
    _Option("cpu", "openvino", "int4", "cpu"),
    _Option("cpu", "onnxruntime", "int4", "cpu"),
    _Option("cuda", "onnxruntime", "bf16", "cuda"),
    _Option("cuda", "onnxruntime", "fp16", "cuda"),
    _Option("cuda", "tensorrt", "bf16", "tensorrt"),
)
"""In order of preference, for what the user leaves open."""


def choose_graphs(use: Use, model_class: str | None) -> tuple[str, ...]:
    """Return the exporter's options for graphs that can be run as asked.

    Args:
        use: How the model will be run.
        model_class: FlagEmbedding's class; None for an encoder of unknown class.

    Returns:
        ``--target`` and ``--precision`` options; empty if a plain export writes the graphs.

    Raises:
        DeviceError: If no graph of such a model runs on the device.
        EngineError: If none runs on the engine, or this machine lacks what they need.
        PrecisionError: If none has the precision.
    """
    if use.engine not in ("auto", *ENGINES):
        raise EngineError(
            f"unknown engine {use.engine!r}; this bge-runtime has auto, {', '.join(ENGINES)}"
        )
    decoder = model_class in (*DECODER_CLASSES, RERANKER_DECODER)
    table = _DECODERS if decoder else _M3 if model_class == ENCODER_ONLY_M3 else _ENCODERS
    chosen = [_choose(table, device, use) for device in dict.fromkeys(use.devices)]
    if all(option.by_default for option in chosen):
        return ()
    pairs = dict.fromkeys((option.target, option.precision) for option in chosen)
    return tuple(
        word
        for target, precision in pairs
        for word in ("--target", target, "--precision", precision)
    )


def _choose(table: Sequence[_Option], device: str, use: Use) -> _Option:
    """Return the first option for a device that fits the request and runs on this machine."""
    on_device = [option for option in table if option.device == device_kind(device)]
    if not on_device:
        raise DeviceError(
            f"requested device {device!r}, and models of this kind are exported for "
            f"{_listed(option.device for option in table)}"
        )
    on_engine = [option for option in on_device if use.engine in ("auto", option.engine)]
    if not on_engine:
        raise EngineError(
            f"requested engine {use.engine!r} on {device}, and models of this kind are exported "
            f"for {_listed(option.engine for option in on_device)} there"
        )
    found = [option for option in on_engine if use.precision in ("auto", option.precision)]
    if not found:
        raise PrecisionError(
            f"requested precision {use.precision!r} on {device}"
            + (f" and engine {use.engine!r}" if use.engine != "auto" else "")
            + f", and models of this kind are exported in "
            f"{_listed(option.precision for option in on_engine)} for that"
        )
    reasons: dict[str, None] = {}
    for option in found:
        reason = unavailable_reason(Requirement(option.engine, option.device, option.precision))
        if reason is None:
            return option
        reasons[reason] = None
    raise EngineError(
        f"requested device {device!r}, engine {use.engine!r} and precision {use.precision!r}, but "
        f"{'; '.join(reasons)}. Nothing was exported; see `bge-runtime doctor`"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
