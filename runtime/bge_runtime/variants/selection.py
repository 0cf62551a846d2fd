"""Which variant of a bundle runs: by what was asked for, this machine, and measured parity."""

from __future__ import annotations

import warnings

from bge_runtime.bundle import TOLERANCES, UNIFORM_BATCH, Bundle, Variant
from bge_runtime.engines import ENGINES, device_kind, require_cuda_graphs, unavailable_reason
from bge_runtime.errors import BundleError, DeviceError, EngineError, PrecisionError
from bge_runtime.variants.parity_check import cached_parity

ON_REQUEST = frozenset({"int8", "int4"})
"""Precisions that are faster or smaller for a loss that a user has to agree to."""


def select_variant(
    bundle: Bundle, *, device: str, engine: str = "auto", precision: str = "auto"
) -> Variant:
    """Choose the variant to run on a device.

    Variants are listed in the bundle in order of preference; the first one that this
    machine can run is chosen. With ``precision="auto"`` its parity must have been
    measured: where it was not when the bundle was made (bf16 on a laptop without it), it
    is measured here, once, and the result remembered in the cache. One that misses its
    tolerance is passed over with a warning, and one in 8 or 4 bits is chosen only if the
    bundle has nothing else, which then was asked for when it was made.

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
    found = [
        variant
        for variant in bundle.manifest.variants
        # One for texts of one length goes with another one, and would be slow by itself.
        if variant.device == kind and UNIFORM_BATCH not in bundle.graph(variant.graph).inputs
    ]
    if not found:
        kinds = sorted({variant.device for variant in bundle.manifest.variants})
        raise DeviceError(
            f"requested device {device!r}, but the bundle {bundle.path.name} has variants for "
            f"{', '.join(kinds)} only. {_advice(bundle.manifest.variants[0])}, or see "
            "`bge-export --help` for what else there is"
        )
    if engine != "auto":
        if engine not in ENGINES:
            raise EngineError(
                f"unknown engine {engine!r}; this bge-runtime has auto, {', '.join(ENGINES)}"
            )
        others = sorted({variant.engine for variant in found})
        found = [variant for variant in found if variant.engine == engine]
        if not found:
            raise EngineError(
                f"requested engine {engine!r} on {device}, but the bundle {bundle.path.name} "
                f"has variants for {', '.join(others)} there. Pass engine={others[0]!r}"
            )
    if precision != "auto":
        others = sorted({variant.precision for variant in found})
        found = [variant for variant in found if variant.precision == precision]
        if not found:
            named = [v for v in bundle.manifest.variants if v.precision == precision]
            raise PrecisionError(
                f"requested precision {precision!r} on {device}, but the bundle "
                f"{bundle.path.name} has {', '.join(others)} there. Pass "
                f"precision={others[0]!r}, or leave it out"
                + (f". {named[0].name} has it. {_advice(named[0])}" if named else "")
            )
    else:
        found = [variant for variant in found if variant.precision not in ON_REQUEST] or found
    able = [variant for variant in found if unavailable_reason(variant) is None]
    if not able:
        return found[0]  # opening it says exactly what is missing
    if precision != "auto":
        return able[0]
    for variant in able:
        if _is_proven(bundle, variant):
            return variant
    raise PrecisionError(
        f"no variant of the bundle {bundle.path.name} that this machine can run on {device} "
        "comes close enough to PyTorch's vectors. Run `bge-runtime doctor --verify "
        f"{bundle.path}` for the figures, and export it again with bge-export --force"
    )


def select_cuda_graph_variant(bundle: Bundle, variant: Variant) -> Variant:
    """Return the variant that runs single short texts as CUDA graphs beside another variant.

    Raises:
        EngineError: If the engine of ``variant`` has no CUDA graphs, the bundle has no graph for
            them, or that graph fails the parity check on this machine.
    """
    require_cuda_graphs(variant)
    wanted = (variant.engine, variant.device, variant.precision)
    for found in bundle.manifest.variants:
        uniform = UNIFORM_BATCH in bundle.graph(found.graph).inputs
        if not uniform or (found.engine, found.device, found.precision) != wanted:
            continue
        if unavailable_reason(variant) is not None:
            return found  # opening the other one says exactly what is missing
        parity = found.parity or cached_parity(bundle, found)
        if failures := parity.failures(TOLERANCES[found.precision]):
            raise EngineError(
                f"requested cuda_graphs, but variant {found.name!r}, which has them, is too far "
                f"from PyTorch's vectors on this machine ({'; '.join(failures)}). Leave it out"
            )
        return found
    raise EngineError(
        f"requested cuda_graphs, but the bundle {bundle.path.name} has no graph for them beside "
        f"variant {variant.name!r}: this version writes one of encoders for ONNX Runtime "
        "(--target cuda). Leave it out, or export the bundle again"
    )


def _advice(variant: Variant) -> str:
    reason = unavailable_reason(variant)
    not_here = "" if reason is None else f" (not on this machine: {reason})"
    return f"Pass devices={variant.device!r}{not_here}"


def _is_proven(bundle: Bundle, variant: Variant) -> bool:
    parity = variant.parity or cached_parity(bundle, variant)
    failures = parity.failures(TOLERANCES[variant.precision])
    if failures:
        warnings.warn(
            f"variant {variant.name!r} of the bundle {bundle.path.name} is too far from PyTorch's "
            f"vectors on this machine ({'; '.join(failures)}), and is passed over",
            stacklevel=2,
        )
    return not failures
