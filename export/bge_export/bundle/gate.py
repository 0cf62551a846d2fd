"""The parity gate: compare each variant of a bundle with PyTorch, and refuse a wrong one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bge_runtime.bundle import (
    Bundle,
    Graph,
    PairReference,
    Parity,
    Reference,
    ScoreParity,
    Variant,
)
from bge_runtime.engines import EngineInfo, unavailable_reason
from bge_runtime.errors import ExportError
from bge_runtime.variants import measure_parity


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """What the parity gate found about a variant: one line of the table after an export.

    Attributes:
        graph: Path of the graph.
        variant: Name of the variant.
        precision: Precision in force.
        provider: Execution provider, as the engine reports it; None if this machine cannot run it.
        skipped_reason: Why this machine cannot run it.
        size_bytes: Size of the graph and its weights, which graphs may share.
        parity: Measured against PyTorch; None if this machine cannot run it.
        seconds: Duration of the measurement.
        emulated: Parity on a CPU that rounds as a GPU would, for a graph for a GPU that this
            machine does not have.
    """

    graph: str
    variant: str
    precision: str
    provider: str | None
    size_bytes: int
    parity: Parity | ScoreParity | None
    seconds: float
    skipped_reason: str | None = None
    emulated: Parity | ScoreParity | None = None

    @property
    def ran_on(self) -> str:
        """What ran it, for people to read."""
        return self.provider or f"nothing: {self.skipped_reason}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as `bge-export --json` prints it."""
        document = asdict(self) | {"provider": self.ran_on}
        del document["skipped_reason"]
        document["rehearsal"] = document.pop("emulated")  # the key since 0.1
        return document


Emulate = Callable[
    [Bundle, Variant, Reference | PairReference], tuple[EngineInfo, Parity | ScoreParity]
]
"""Runs a graph for a GPU on the CPU with the GPU's rounding. Returns what ran, and the parity."""


def check_variant(
    bundle: Bundle,
    variant: Variant,
    reference: Reference | PairReference,
    emulate: Emulate | None = None,
) -> VariantReport:
    """Compare one variant's vectors, or a reranker's scores, with PyTorch's.

    Texts of different lengths share a batch, so padding is tested too.

    Args:
        bundle: The bundle.
        variant: One of its variants.
        reference: PyTorch's outputs.
        emulate: Runs a graph for a GPU that this machine does not have.

    Raises:
        ExportError: If the parity, emulated or not, is outside the tolerance of the variant's
            precision.
    """
    start = time.perf_counter()
    graph = bundle.graph(variant.graph)
    reason = unavailable_reason(variant.requirement)
    if reason is not None:
        emulated = None
        if emulate is not None and variant.device != "cpu":
            info, emulated = emulate(bundle, variant, reference)
            provider = f"{info.provider}, rounded as on a GPU,"
            require_parity(emulated, graph, variant, provider=provider)
        return make_report(bundle, variant, start=start, skipped_reason=reason, emulated=emulated)
    info, parity = measure_parity(bundle, variant, reference)
    require_parity(parity, graph, variant, provider=info.provider)
    return make_report(bundle, variant, start=start, provider=info.provider, parity=parity)


def make_report(
    bundle: Bundle,
    variant: Variant,
    *,
    start: float,
    provider: str | None = None,
    parity: Parity | ScoreParity | None = None,
    skipped_reason: str | None = None,
    emulated: Parity | ScoreParity | None = None,
) -> VariantReport:
    """Return the report on a variant whose check began at ``start``."""
    graph = bundle.graph(variant.graph)
    return VariantReport(
        graph=graph.file,
        variant=variant.name,
        precision=variant.precision,
        provider=provider,
        size_bytes=sum((bundle.path / name).stat().st_size for name in (graph.file, graph.weights)),
        parity=parity,
        seconds=time.perf_counter() - start,
        skipped_reason=skipped_reason,
        emulated=emulated,
    )


def require_parity(
    parity: Parity | ScoreParity,
    graph: Graph,
    variant: Variant,
    *,
    provider: str,
    reason: str = "",
    option: str = "--target",
) -> None:
    """Refuse a graph whose outputs are too far from PyTorch's.

    Args:
        parity: Its parity.
        graph: The graph.
        variant: The variant that was run.
        provider: What ran it.
        reason: A sentence on why it may be that far.
        option: The option that leaves the graph out.

    Raises:
        ExportError: If the parity is outside the tolerance of the variant's precision.
    """
    if failures := parity.failures(variant.precision):
        outputs = "scores" if isinstance(parity, ScoreParity) else "vectors"
        raise ExportError(
            f"{graph.file} in {variant.precision} on {provider} is too far from PyTorch's "
            f"{outputs}: {'; '.join(failures)}.{reason and f' {reason}'} Nothing was written; "
            f"leave this graph out with {option}, and please report the model"
        )
