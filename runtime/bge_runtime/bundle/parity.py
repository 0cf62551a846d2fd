"""Measure how far vectors are from PyTorch's, and how far they may be.

Cosine alone can hide a broken model: with random weights, *different* texts reach a cosine of
0.94 to 0.995. So parity also has the error share: the largest error divided by the median
distance between different texts. It is 1 or more for unrelated vectors, and about 1e-6 for exact
ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far vectors of one precision may be from PyTorch's fp32 vectors.

    Attributes:
        min_cosine: Smallest cosine to the reference over all texts.
        max_error: Largest difference of one component of a unit vector.
        max_error_share: Largest distance to the reference, as a share of the median
            distance between different texts.
        reason: Why these figures were chosen.
    """

    min_cosine: float
    max_error: float
    max_error_share: float
    reason: str


TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "fp32": Tolerance(
            min_cosine=0.999999,
            max_error=1e-5,
            max_error_share=0.01,
            reason="Same arithmetic in another order. Measured at 3e-7 per component on "
            "all-MiniLM-L6-v2 and seeded bge-base; 1e-5 is what a drop-in replacement promises.",
        ),
        "bf16": Tolerance(
            min_cosine=0.998,
            max_error=0.02,
            max_error_share=0.05,
            reason="8 bits of mantissa. The error share is the tighter limit: 5 % of the distance "
            "between unrelated texts is a cosine of 0.998. Trained weights stay above 0.9999 "
            "(tested); seeded weights are designed to amplify errors: 24 layers of an encoder "
            "were measured at 0.99987 and 3.2 %, 32 of a decoder at 0.9994.",
        ),
        "fp16": Tolerance(
            min_cosine=0.9997,
            max_error=0.005,
            max_error_share=0.02,
            reason="11 bits of mantissa, an eighth of bf16's error, with room for another order of "
            "summation. Measured on an H200: all-MiniLM-L6-v2 at 0.9999986 and 0.2 % over all "
            "lengths; seeded bge-large, whose 24 layers are designed to amplify errors, at "
            "0.9999953 and 1.0 %.",
        ),
        "int8": Tolerance(
            min_cosine=0.995,
            max_error=0.05,
            max_error_share=0.15,
            reason="8-bit weights, only on request. Encoders also round activations: "
            "all-MiniLM-L6-v2 was measured at 0.9984 and 4.2 % (a test requires 0.998), "
            "seeded bge-base at 0.9994 and 5.7 %.",
        ),
        "int4": Tolerance(
            min_cosine=0.8,
            max_error=0.3,
            max_error_share=0.9,
            reason="15 levels for each block of 32 weights, only on request: for a first look at a "
            "model that does not fit otherwise. Seeded weights have no structure that survives.",
        ),
    }
)
"""Tolerances by precision."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Measured distance between vectors and reference vectors.

    Attributes:
        texts: Number of texts compared.
        min_cosine: Smallest cosine between a vector and its reference.
        mean_cosine: Mean of these cosines.
        max_error: Largest difference of one component between unit vectors.
        error_share: Largest distance to the reference, as a share of the median
            distance between different texts of the reference.
    """

    COLUMNS: ClassVar = ("min cosine", "mean cosine", "error/distance")

    texts: int
    min_cosine: float
    mean_cosine: float
    max_error: float
    error_share: float

    def failures(self, precision: str) -> list[str]:
        """Return every limit of a precision that is missed; an empty list if it passes."""
        return self.missed(TOLERANCES[precision])

    def missed(self, tolerance: Tolerance) -> list[str]:
        """Return every limit that is missed."""
        checks = (
            ("minimum cosine", self.min_cosine, ">=", tolerance.min_cosine),
            ("largest difference", self.max_error, "<=", tolerance.max_error),
            ("error share", self.error_share, "<=", tolerance.max_error_share),
        )
        return missed_limits(checks)

    def summary(self) -> str:
        """Return the figure that says most, as text."""
        return f"{self.min_cosine:.7f}"

    def cells(self) -> tuple[str, ...]:
        """Return the figures of `COLUMNS` as text."""
        return f"{self.min_cosine:.7f}", f"{self.mean_cosine:.7f}", f"{self.error_share:.2e}"

    def worst(self, other: Parity) -> Parity:
        """Return the worse of two in each figure; NaN is the worst."""
        # Python's min and max ignore NaN as second argument.
        return Parity(
            texts=self.texts,
            min_cosine=float(np.minimum(self.min_cosine, other.min_cosine)),
            mean_cosine=float(np.minimum(self.mean_cosine, other.mean_cosine)),
            max_error=float(np.maximum(self.max_error, other.max_error)),
            error_share=float(np.maximum(self.error_share, other.error_share)),
        )

    def to_json(self) -> dict[str, float | None]:
        """Return the figures by name, with None for NaN and infinity."""
        return finite_figures(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parity:
        """Return the parity that `to_json` or ``dataclasses.asdict`` wrote."""
        names = ("min_cosine", "mean_cosine", "max_error", "error_share")
        return cls(texts=int(data["texts"]), **{name: read_figure(data[name]) for name in names})


def missed_limits(checks: Iterable[tuple[str, float, str, float]]) -> list[str]:
    """Return a sentence for each figure that misses its limit, or is NaN.

    Args:
        checks: Name, figure, ``">="`` or ``"<="``, and limit.
    """
    # Written so that NaN fails.
    return [
        f"{name} {value:.8g} is not {sign} {limit:g}"
        for name, value, sign, limit in checks
        if not (value >= limit if sign == ">=" else value <= limit)
    ]


def finite_figures(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures with None, which JSON has, for NaN and infinity."""
    return {name: value if np.isfinite(value) else None for name, value in figures.items()}


def read_figure(value: float | None) -> float:
    """Return a figure that `finite_figures` wrote."""
    return float("nan") if value is None else float(value)


def compare(vectors: NDArray[np.floating], reference: NDArray[np.floating]) -> Parity:
    """Return the parity of vectors, after scaling them and the reference to unit length.

    Args:
        vectors: Vectors to measure. Shape: ``(n, dim)``.
        reference: PyTorch's vectors of the same texts, not all alike. Shape: ``(n, dim)``,
            n >= 2.

    Raises:
        ValueError: If the shapes differ or fewer than two texts are given.
    """
    if vectors.shape != reference.shape or reference.ndim != 2 or len(reference) < 2:
        raise ValueError(
            "parity compares two (n, dim) arrays with n >= 2, "
            f"but got {vectors.shape} and {reference.shape}"
        )
    ours, theirs = _unit(vectors), _unit(reference)
    cosine = np.einsum("nd,nd->n", ours, theirs)
    distance = np.linalg.norm(ours - theirs, axis=1)
    between = np.sqrt(np.maximum(2 - 2 * (theirs @ theirs.T), 0))
    typical = float(np.median(between[np.triu_indices(len(theirs), k=1)]))
    return Parity(
        texts=len(theirs),
        min_cosine=float(cosine.min()),
        mean_cosine=float(cosine.mean()),
        max_error=float(np.abs(ours - theirs).max()),
        error_share=float(distance.max() / typical) if typical > 0 else float("inf"),
    )


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    unit: NDArray[np.float64] = wide / np.maximum(
        np.linalg.norm(wide, axis=1, keepdims=True), 1e-12
    )
    return unit
