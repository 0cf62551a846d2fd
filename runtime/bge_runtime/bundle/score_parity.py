"""Measure how far a reranker's scores are from PyTorch's, and how far they may be.

Scores are logits. An error counts in proportion to how far the scores of different pairs are apart,
and by the order of the pairs, which is what a reranker is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle.parity import finite_figures, missed_limits, read_figure


@dataclass(frozen=True, kw_only=True)
class ScoreTolerance:
    """How far scores of one precision may be from PyTorch's fp32 scores.

    Attributes:
        max_error: Largest difference of a logit; None if only its share counts.
        negligible_share: Share below which `max_error` may be exceeded, where logits are large.
        max_error_share: That, as a share of the median difference between different pairs.
        min_rank_correlation: Smallest Kendall's tau of the two orders.
        reason: Why these figures were chosen.
    """

    max_error: float | None
    max_error_share: float
    min_rank_correlation: float
    reason: str
    negligible_share: float = 0.0


SCORE_TOLERANCES: Mapping[str, ScoreTolerance] = MappingProxyType(
    {
        "fp32": ScoreTolerance(
            max_error=1e-4,
            max_error_share=1e-3,
            min_rank_correlation=0.998,
            reason="Same arithmetic in another order. Logits of seeded bge-reranker-base, which "
            "spread over 16 units, were measured at 2.8e-5; 1e-4 is what a drop-in replacement "
            "promises. One exchange of two pairs of 51 is a correlation of 0.9984. Logits of "
            "decoders are larger, and so is their rounding: a share of 5e-5 passes at any size.",
            negligible_share=5e-5,
        ),
        "bf16": ScoreTolerance(
            max_error=None,
            max_error_share=0.15,
            min_rank_correlation=0.95,
            reason="8 bits of mantissa. With emulated rounding, seeded weights of the shape of "
            "MiniLM with 6 layers were at 5.6 % and 0.994, bge-reranker-base at 7.3 % and 0.983. "
            "They are designed to amplify errors: all-MiniLM-L6-v2 with a fitted head was at 2.8 % "
            "and 0.995. Twice the seeded ones' error is for models with 24 layers.",
        ),
        "fp16": ScoreTolerance(
            max_error=None,
            max_error_share=0.03,
            min_rank_correlation=0.98,
            reason="11 bits of mantissa. With emulated rounding, seeded models of 3 and 6 layers "
            "were at 1.1 % and 0.994, all-MiniLM-L6-v2 with a fitted head at 0.6 %. Pairs that "
            "fp16 makes equal count as half exchanged.",
        ),
        "int8": ScoreTolerance(
            max_error=None,
            max_error_share=0.35,
            min_rank_correlation=0.9,
            reason="8-bit weights with a scale for each block and rounded activations, only on "
            "request. Seeded weights were measured at 16 % and 0.959 with MiniLM's shape, at 19 % "
            "and 0.969 with bge-reranker-base's; all-MiniLM-L6-v2 with a fitted head at 14 % and "
            "0.962, and 7 % and 0.983 on OpenVINO.",
        ),
        "int4": ScoreTolerance(
            max_error=None,
            max_error_share=2.0,
            min_rank_correlation=0.5,
            reason="15 levels for each block of 32 weights, only on request: for a first look at a "
            "model that does not fit otherwise. Unrelated scores have a correlation near 0.",
        ),
    }
)
"""Tolerances by precision, the same as in `bge_runtime.bundle.parity.TOLERANCES`."""


@dataclass(frozen=True, kw_only=True)
class ScoreParity:
    """Measured distance between scores and reference scores.

    Attributes:
        pairs: Number of pairs compared.
        max_error: Largest difference of a logit.
        error_share: That, as a share of the median difference between different pairs of the
            reference.
        rank_correlation: Kendall's tau of the two orders: 1 if they are the same, 0 if they have
            nothing in common.
    """

    COLUMNS: ClassVar = ("rank correlation", "largest error", "error/difference")

    pairs: int
    max_error: float
    error_share: float
    rank_correlation: float

    def failures(self, precision: str) -> list[str]:
        """Return every limit of a precision that is missed; an empty list if it passes."""
        limits = SCORE_TOLERANCES[precision]
        checks = [
            ("error share", self.error_share, "<=", limits.max_error_share),
            ("rank correlation", self.rank_correlation, ">=", limits.min_rank_correlation),
        ]
        negligible = 0 < self.error_share <= limits.negligible_share
        if limits.max_error is not None and not (negligible and np.isfinite(self.max_error)):
            checks.insert(0, ("largest difference", self.max_error, "<=", limits.max_error))
        return missed_limits(checks)

    def summary(self) -> str:
        """Return the figure that says most, as text."""
        return f"{self.max_error:.2e}"

    def cells(self) -> tuple[str, ...]:
        """Return the figures of `COLUMNS` as text."""
        return f"{self.rank_correlation:.4f}", f"{self.max_error:.2e}", f"{self.error_share:.2e}"

    def worst(self, other: ScoreParity) -> ScoreParity:
        """Return the worse of two in each figure; NaN is the worst."""
        # Python's min and max ignore NaN as second argument.
        return ScoreParity(
            pairs=self.pairs,
            max_error=float(np.maximum(self.max_error, other.max_error)),
            error_share=float(np.maximum(self.error_share, other.error_share)),
            rank_correlation=float(np.minimum(self.rank_correlation, other.rank_correlation)),
        )

    def to_json(self) -> dict[str, float | None]:
        """Return the figures by name, with None for NaN and infinity."""
        return finite_figures(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoreParity:
        """Return the parity that `to_json` or ``dataclasses.asdict`` wrote."""
        names = ("max_error", "error_share", "rank_correlation")
        return cls(pairs=int(data["pairs"]), **{name: read_figure(data[name]) for name in names})


def compare_scores(logits: NDArray[np.floating], reference: NDArray[np.floating]) -> ScoreParity:
    """Return the parity of logits.

    Args:
        logits: Logits to measure. Shape: ``(n,)``.
        reference: PyTorch's logits of the same pairs, not all alike. Shape: ``(n,)``, n >= 2.

    Raises:
        ValueError: If the shapes differ or fewer than two pairs are given.
    """
    if logits.shape != reference.shape or reference.ndim != 1 or len(reference) < 2:
        raise ValueError(
            "parity compares two (n,) arrays with n >= 2, "
            f"but got {logits.shape} and {reference.shape}"
        )
    ours, theirs = logits.astype(np.float64), reference.astype(np.float64)
    first, second = np.triu_indices(len(theirs), k=1)
    between = theirs[first] - theirs[second]
    typical, error = float(np.median(np.abs(between))), float(np.abs(ours - theirs).max())
    ordered = between != 0
    agreement = np.sign(between) * np.sign(ours[first] - ours[second])
    return ScoreParity(
        pairs=len(theirs),
        max_error=error,
        error_share=error / typical if typical > 0 else float("inf"),
        rank_correlation=float(agreement[ordered].mean()) if ordered.any() else float("nan"),
    )
