"""Engines: what runs a bundle's graphs.

An engine is small on purpose: it opens one graph on one device, runs token arrays
and gives named outputs. To add one, write a module with a class that satisfies
`Engine`, and give it a row in ``_OPENERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle
from bge_runtime.errors import BundleError, DeviceError, EngineError, PrecisionError
from bge_runtime.manifest import Variant


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What is in force, as the engine itself reports it after opening.

    Attributes:
        engine: Name of the engine.
        version: Version of its package.
        device: Kind of device it runs on.
        precision: Arithmetic of the graph it runs.
        provider: The engine's own name for what executes the graph.
        variant: Name of the bundle's variant.
        threads: Threads it computes with.
    """

    engine: str
    version: str
    device: str
    precision: str
    provider: str
    variant: str
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.engine} {self.version} on {self.device} ({self.provider}), "
            f"{self.precision}, variant {self.variant}, {self.threads} threads"
        )


class Engine(Protocol):
    """An opened graph.

    Attributes:
        info: What is in force.
        batch_tokens: Tokens of a batch, padding included, at which it is fastest.
        batch_overhead_tokens: What starting a batch costs, in tokens of computing.
    """

    info: EngineInfo
    batch_tokens: int
    batch_overhead_tokens: int

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
    ) -> list[NDArray[np.float32]]:
        """Run one batch. Any number of threads may call this at once.

        Args:
            input_ids: Token ids, padded on the right. Shape: ``(batch, sequence)``.
            attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
            outputs: Names of the outputs to compute.

        Returns:
            The outputs in the order asked for.

        Raises:
            InferenceError: If the engine fails.
        """
        ...

    def abandon(self) -> None:
        """Let go of the graph without touching it.

        For a process that was forked: the threads behind the graph did not come
        along, and closing it would wait for them.
        """
        ...


def _open_onnxruntime(bundle: Bundle, variant: Variant, threads: int | None) -> Engine:
    from bge_runtime.engines.ort import OrtEngine

    return OrtEngine(bundle, variant, threads=threads)


_OPENERS: dict[str, Callable[[Bundle, Variant, int | None], Engine]] = {
    "onnxruntime": _open_onnxruntime,
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
    try:
        opener = _OPENERS[variant.engine]
    except KeyError:
        raise EngineError(
            f"variant {variant.name!r} needs the engine {variant.engine!r}; this bge-runtime "
            f"has {', '.join(_OPENERS)}. Run `pip install -U bge-runtime`"
        ) from None
    return opener(bundle, variant, threads)


def select_variant(
    bundle: Bundle, *, device: str, engine: str = "auto", precision: str = "auto"
) -> Variant:
    """Choose the variant to run on a device.

    Variants are listed in the bundle in order of preference. One whose parity was
    never measured is not chosen unless its precision is asked for by name.

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
        if engine not in _OPENERS:
            raise EngineError(
                f"unknown engine {engine!r}; this bge-runtime has auto, {', '.join(_OPENERS)}"
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
    return found[0]


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
