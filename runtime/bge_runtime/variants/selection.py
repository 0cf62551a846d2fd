"""Choose the variant of a bundle to run, by request, machine and measured parity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bge_runtime.bundle import TOLERANCES, UNIFORM_BATCH, Bundle, Parity, ScoreParity, Variant
from bge_runtime.engines import ENGINES, device_kind, require_cuda_graphs, unavailable_reason
from bge_runtime.errors import BgeError, BundleError, DeviceError, EngineError, PrecisionError
from bge_runtime.system import warn_user
from bge_runtime.variants.parity_check import cached_parity

EXPLICIT_ONLY_PRECISIONS = frozenset({"int8", "int4"})
"""Precisions that lose accuracy for speed or size, and are chosen only by name."""


@dataclass(frozen=True, kw_only=True)
class JudgedVariant:
    """What ``precision="auto"`` makes of a variant on this machine.

    Attributes:
        variant: The variant.
        objection: Why it is not considered; None if it is.
        parity: As measured during the export, or here; None if the variant cannot be opened here.
        on_request: Whether all that it lacks is a request for its precision.
    """

    variant: Variant
    objection: str | None
    parity: Parity | ScoreParity | None
    on_request: bool = False


def select_variant(
    bundle: Bundle, *, device: str, engine: str = "auto", precision: str = "auto"
) -> Variant:
    """Choose the variant to run on a device.

    A bundle lists its variants in order of preference. The first one that this machine can run
    is chosen; one that needs a newer bge-runtime is passed over. With ``precision="auto"`` it must
    also pass the parity check: if its parity was not measured during the export (bf16 on a machine
    without it), it is measured here once, and cached. A variant that fails is skipped with a
    warning. One in 8 or 4 bits is chosen only if the bundle has no other, since then it was
    requested for the export.

    Args:
        bundle: The bundle.
        device: A device, such as ``"cpu"`` or ``"cuda:1"``.
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision, or ``"auto"``.

    Raises:
        BundleError: If the bundle has no variants that can be chosen.
        DeviceError: If it has no variant for that kind of device.
        EngineError: If it has no variant for that engine.
        PrecisionError: If it has no variant of that precision, or none passes the parity check.
    """
    found = _for_device(bundle, device)
    if engine != "auto":
        found = _for_engine(found, engine, bundle=bundle, device=device)
    if precision != "auto":
        found = _for_precision(found, precision, bundle=bundle, device=device)
    else:
        found = _without_asking(found)
    able = [variant for variant in found if unavailable_reason(variant.requirement) is None]
    if not able:
        return found[0]  # opening it reports what is missing
    if precision != "auto":
        return able[0]
    for variant in able:
        if _passes_parity(bundle, variant):
            return variant
    raise PrecisionError(
        f"no variant of the bundle {bundle.path.name} that this machine can run on {device} "
        "passes the parity check with PyTorch. Run `bge-runtime doctor --verify "
        f"{bundle.path}` for the figures, and export it again with bge-export --force"
    )


def judge_variants(bundle: Bundle, *, device: str) -> Iterator[JudgedVariant]:
    """Yield what ``precision="auto"`` makes of each variant for a device.

    `select_variant` chooses the first one without an objection. Parities that are not known yet are
    measured.

    Args:
        bundle: The bundle.
        device: A device, such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        BundleError: If the bundle has no variants that can be chosen.
        DeviceError: If it has no variant for that kind of device.
    """
    found = _for_device(bundle, device)
    considered = _without_asking(found)
    for variant in found:
        parity, on_request = None, False
        objection = unavailable_reason(variant.requirement)
        if objection is None:
            try:
                parity = variant.parity or cached_parity(bundle, variant)
            except BgeError as error:
                objection = str(error)
        if parity is not None:
            if failures := parity.failures(variant.precision):
                objection = f"fails the parity check: {'; '.join(failures)}"
            elif on_request := variant not in considered:
                objection = f"only on request: precision={variant.precision!r}"
        yield JudgedVariant(
            variant=variant, objection=objection, parity=parity, on_request=on_request
        )


def select_cuda_graph_variant(bundle: Bundle, variant: Variant) -> Variant:
    """Return the variant that runs single short texts as CUDA graphs for another variant.

    Raises:
        EngineError: If the engine of ``variant`` has no CUDA graphs, the bundle has no graph for
            them, or that graph fails the parity check on this machine.
    """
    require_cuda_graphs(variant)
    for found in bundle.manifest.variants:
        if _runs_alone(bundle, found) or found.requirement != variant.requirement:
            continue
        if unavailable_reason(variant.requirement) is not None:
            return found  # opening ``variant`` reports what is missing
        parity = found.parity or cached_parity(bundle, found)
        if failures := parity.failures(found.precision):
            raise EngineError(
                f"requested cuda_graphs, but variant {found.name!r}, which runs them, fails the "
                f"parity check with PyTorch on this machine ({'; '.join(failures)}). Leave it out"
            )
        return found
    raise EngineError(
        f"requested cuda_graphs, but the bundle {bundle.path.name} has no graph for them to go "
        f"with variant {variant.name!r}: this version exports one for encoders on ONNX Runtime "
        "(--target cuda). Leave it out, or export the bundle again"
    )


def _without_asking(variants: list[Variant]) -> list[Variant]:
    """Return the variants that need no request by precision; all of them if there are none."""
    return [each for each in variants if each.precision not in EXPLICIT_ONLY_PRECISIONS] or variants


def _for_device(bundle: Bundle, device: str) -> list[Variant]:
    kind = device_kind(device)
    if not bundle.manifest.variants:
        raise BundleError(
            f"the bundle {bundle.path.name} has no variants. Export it again with "
            "bge-export --force"
        )
    alone = [each for each in bundle.manifest.variants if _runs_alone(bundle, each)]
    if not alone:
        raise BundleError(
            f"the bundle {bundle.path.name} has only a graph for CUDA graphs, which runs beside "
            "another variant. Export it again with bge-export --force"
        )
    found = [variant for variant in alone if variant.device == kind]
    if not found:
        kinds = sorted({variant.device for variant in alone})
        raise DeviceError(
            f"requested device {device!r}, but the bundle {bundle.path.name} has variants for "
            f"{', '.join(kinds)} only. {_advice(alone[0])}, or "
            + (
                "export it again with `bge-export --target cuda`"
                if kind == "cuda"
                else "see `bge-export --help` for other targets"
            )
        )
    return found


def _runs_alone(bundle: Bundle, variant: Variant) -> bool:
    """Return whether a variant runs texts of any lengths, and not only another's CUDA graphs."""
    return UNIFORM_BATCH not in bundle.graph(variant.graph).inputs


def _for_engine(
    variants: list[Variant], engine: str, *, bundle: Bundle, device: str
) -> list[Variant]:
    if engine not in ENGINES:
        raise EngineError(
            f"unknown engine {engine!r}; this bge-runtime has auto, {', '.join(ENGINES)}"
        )
    found = [variant for variant in variants if variant.engine == engine]
    if not found:
        others = sorted({variant.engine for variant in variants})
        raise EngineError(
            f"requested engine {engine!r} on {device}, but the bundle {bundle.path.name} "
            f"has variants for {', '.join(others)} there. Pass engine={others[0]!r}"
        )
    return found


def _for_precision(
    variants: list[Variant], precision: str, *, bundle: Bundle, device: str
) -> list[Variant]:
    found = [variant for variant in variants if variant.precision == precision]
    if not found and precision not in TOLERANCES:
        raise PrecisionError(
            f"unknown precision {precision!r}; this bge-runtime has auto, {', '.join(TOLERANCES)}"
        )
    if not found:
        others = sorted({variant.precision for variant in variants})
        elsewhere = [v for v in bundle.manifest.variants if v.precision == precision]
        raise PrecisionError(
            f"requested precision {precision!r} on {device}, but the bundle "
            f"{bundle.path.name} has {', '.join(others)} there. Pass "
            f"precision={others[0]!r}, or "
            + (
                f"leave it out. {elsewhere[0].name} has it. {_advice(elsewhere[0])}"
                if elsewhere
                else f"export it again with `bge-export --precision {precision}`"
            )
        )
    return found


def _advice(variant: Variant) -> str:
    reason = unavailable_reason(variant.requirement)
    not_here = "" if reason is None else f" (not on this machine: {reason})"
    return f"Pass devices={variant.device!r}{not_here}"


def _passes_parity(bundle: Bundle, variant: Variant) -> bool:
    parity = variant.parity or cached_parity(bundle, variant)
    failures = parity.failures(variant.precision)
    if failures:
        warn_user(
            f"skipping variant {variant.name!r} of the bundle {bundle.path.name}: it fails the "
            f"parity check with PyTorch on this machine ({'; '.join(failures)})"
        )
    return not failures
