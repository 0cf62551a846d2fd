"""Compare retrieval and ranking scores of a bundle with those of PyTorch.

Parity measures how far vectors are from PyTorch's; this measures what the difference does to search
and similarity. Both embed the same questions and passages, or pairs of sentences. The scores are
the usual ones, and the difference is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.datasets.corpus import spread_sample
from bge_bench.errors import BenchError
from bge_bench.experiments.tasks import Task, Values
from bge_bench.systems.base import OURS, Item, System, open_system
from bge_bench.systems.lineup import Int8Model, baseline_system, our_system, own_batch_size
from bge_bench.systems.outputs import AnyParity, compare_outputs
from bge_runtime.bundle import Bundle, Model
from bge_runtime.engines import unavailable_reason
from bge_runtime.sources import (
    DECODER_CLASSES,
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    RERANKER_DECODER,
)

SCORE_REFERENCES = ("flagembedding", "transformers")
"""Systems that compute on PyTorch in fp32; transformers supports encoders only."""

_REFERENCE_BATCH_SIZE = 8
_COMPARED = 2000
"""Texts of a task whose vectors are compared one by one with PyTorch's, evenly spaced over all."""

_Measured = tuple[Values, NDArray[np.float32]]
"""Scores of a task, and outputs of its texts: vectors, or the logits of a reranker's pairs."""


@dataclass(frozen=True, kw_only=True)
class ScoreLimit:
    """How far a score may be from PyTorch's.

    Attributes:
        difference: Largest difference, in either direction.
        standard_errors: Allowance for chance, subtracted from the difference first, in standard
            errors of the mean over the questions.
        reason: Why the limit has these values.
    """

    difference: float
    standard_errors: float
    reason: str


SCORE_LIMITS: Mapping[str, ScoreLimit] = MappingProxyType(
    {
        "fp32": ScoreLimit(
            difference=0.0005,
            standard_errors=0,
            reason="Vectors that differ by 3e-7 swap two passages if they are tied; the limit is "
            "that of one or two questions in a thousand. Measured at 0 on all-MiniLM-L6-v2.",
        ),
        "bf16": ScoreLimit(
            difference=0.0005,
            standard_errors=2,
            reason="Rounding swaps passages that are nearly tied, as often for the better as for "
            "the worse: on German questions, hard for an English model, 8 of 1190 rose and 8 "
            "fell, and nDCG@10 was 0.00105 higher. What is left beyond chance is to be nothing.",
        ),
        "int8": ScoreLimit(
            difference=0.005,
            standard_errors=0,
            reason="Asked for by name: half a point is what 8 bits may cost, which leaves room for "
            "chance. Measured at +0.0006 on English questions and -0.0040 on German ones, of "
            "which 26 rose and 51 fell.",
        ),
    }
)
"""Limits by precision, for every score. Other precisions are measured, but not judged."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of bge-runtime, compared with PyTorch's.

    Attributes:
        score: Ours.
        reference: PyTorch's.
        standard_error: Of the mean difference over the questions.
        better: Questions with a higher score than PyTorch's.
        worse: Questions with a lower score. These three are 0 for a score that is not a mean
            over questions.
    """

    score: float
    reference: float
    standard_error: float
    better: int
    worse: int

    @property
    def difference(self) -> float:
        """Ours less PyTorch's."""
        return self.score - self.reference

    @classmethod
    def between(cls, ours: NDArray[np.float64], reference: NDArray[np.float64]) -> Difference:
        """Compare the values of one score, question by question."""
        apart = ours - reference
        mean = len(apart) > 1
        return cls(
            score=float(ours.mean()),
            reference=float(reference.mean()),
            standard_error=float(apart.std(ddof=1) / np.sqrt(len(apart))) if mean else 0.0,
            better=int((apart > 0).sum()) if mean else 0,
            worse=int((apart < 0).sum()) if mean else 0,
        )

    def within(self, limit: ScoreLimit) -> bool:
        """Return whether the difference is within a limit; NaN is not."""
        chance = limit.standard_errors * self.standard_error
        return abs(self.difference) - chance <= limit.difference


@dataclass(kw_only=True)
class SystemScores:
    """The scores of a bundle in one configuration, or of a baseline.

    Attributes:
        precision: Precision in force.
        in_force: Description of what ran.
        asked: Requested precisions that led to it; ``"auto"`` is the default. Of a baseline its
            name.
        ours: Whether it is the bundle; a baseline is measured, but not judged.
        scores: By task, then by score.
        parity: By task, how far its outputs are from PyTorch's.
    """

    precision: str
    in_force: str
    asked: list[str] = field(default_factory=list)
    ours: bool = True
    scores: dict[str, dict[str, Difference]] = field(default_factory=dict)
    parity: dict[str, AnyParity] = field(default_factory=dict)

    def add(self, task: str, measured: _Measured, reference: _Measured) -> None:
        """Add what a task came to, and PyTorch's."""
        (scores, outputs), (their_scores, their_outputs) = measured, reference
        self.scores[task] = {
            name: Difference.between(values, their_scores[name]) for name, values in scores.items()
        }
        # Only logits have one column.
        self.parity[task] = compare_outputs(outputs, their_outputs, reranks=outputs.shape[1] == 1)

    @property
    def failures(self) -> list[str]:
        """Every score that misses the limit of the precision in force."""
        limit = SCORE_LIMITS.get(self.precision)
        if limit is None or not self.ours:
            return []
        return [
            f"{task}: {name} {found.score:.5f} is {found.difference:+.5f} from PyTorch's "
            f"{found.reference:.5f} (standard error {found.standard_error:.5f}); the limit of "
            f"{self.precision} is {limit.difference:g}"
            for task, scores in self.scores.items()
            for name, found in scores.items()
            if not found.within(limit)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with the scores and their limit."""
        limit = SCORE_LIMITS.get(self.precision)
        return {
            **asdict(self),
            "parity": {task: found.to_json() for task, found in self.parity.items()},
            "scores": {
                task: {
                    name: {**asdict(found), "difference": found.difference}
                    for name, found in scores.items()
                }
                for task, scores in self.scores.items()
            },
            "limit": asdict(limit) if limit is not None else None,
            "failures": self.failures,
        }


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """The scores of all configurations.

    Attributes:
        reference: Name and version of the library whose scores are the reference.
        reference_in_force: Description of what ran it.
        systems: The scores of each configuration of the bundle.
    """

    reference: str
    reference_in_force: str
    systems: tuple[SystemScores, ...]

    @property
    def passed(self) -> bool:
        """Whether all scores are within their limits."""
        return not any(system.failures for system in self.systems)


def runnable_precisions(bundle: Bundle) -> list[str]:
    """Return the precisions of a bundle that this CPU can run, preferred ones first."""
    variants = [variant for variant in bundle.manifest.variants if variant.device == "cpu"]
    return list(
        dict.fromkeys(v.precision for v in variants if unavailable_reason(v.requirement) is None)
    )


def measure_retrieval(
    bundle: Bundle,
    checkpoint: Path,
    tasks: Sequence[Task],
    *,
    precisions: Sequence[str],
    reference: str = SCORE_REFERENCES[0],
    baselines: Sequence[str] = (),
    int8_model: Int8Model | None = None,
    step: Callable[[str], object],
) -> RetrievalResult:
    """Score a bundle, PyTorch and baselines, one after another in this process.

    Args:
        bundle: The bundle, of an embedder, or of a reranker for reranking tasks.
        checkpoint: The checkpoint it was made from.
        tasks: The tasks.
        precisions: Precisions of the bundle; ``"auto"`` is the default. Two that run the same
            variant are run once.
        reference: One of `SCORE_REFERENCES`.
        baselines: Names out of `bge_bench.systems.base.BASELINES` and ``INT8_BASELINES``.
        int8_model: Makes the models of baselines in int8; see `baseline_system`.
        step: Called with a message before each step, at most
            ``(1 + len(precisions) + len(baselines)) * len(tasks)`` times.

    Raises:
        BgeError: If a precision cannot be run here, the reference does not know the model, or
            two tasks have one name.
    """
    model = bundle.manifest.model
    _check_comparable(model, tasks, reference)

    instruct = instruction(model)
    # With as many threads as each library takes by itself.
    mine = replace(our_system(bundle, threads=1), threads=None)
    specs = [replace(mine, precision=precision) for precision in precisions]
    for name in baselines:
        other = baseline_system(mine, name, checkpoint, int8_model)
        specs.append(replace(other, batch_size=own_batch_size(other)))

    system = open_system(
        replace(
            mine,
            system=reference,
            model=str(checkpoint),
            batch_size=_REFERENCE_BATCH_SIZE,
            precision="fp32",
        )
    )
    reference_name, reference_in_force = system.name, system.in_force
    expected: dict[str, _Measured] = {}
    for task in tasks:
        step(f"{reference}: {task.name}")
        expected[task.name] = _measure(task, system, instruct)
    del system  # so that two copies of the weights are never held at once

    results: dict[str, SystemScores] = {}
    for spec in specs:
        ours = spec.system == OURS
        asked = spec.precision if ours else spec.system
        system = open_system(spec)
        result = results.setdefault(
            system.in_force,
            SystemScores(precision=system.precision, in_force=system.in_force, ours=ours),
        )
        result.asked.append(asked)
        for task in tasks if not result.scores else ():
            step(f"{asked}: {task.name}")
            result.add(task.name, _measure(task, system, instruct), expected[task.name])
        del system
    return RetrievalResult(
        reference=reference_name,
        reference_in_force=reference_in_force,
        systems=tuple(results.values()),
    )


class _Recorded:
    """A system that keeps what it computes."""

    def __init__(self, system: System) -> None:
        self.name, self.precision = system.name, system.precision
        self.in_force, self.batch_size = system.in_force, system.batch_size
        self.outputs: list[NDArray[np.float32]] = []
        self._system = system

    def encode(self, texts: Sequence[Item]) -> NDArray[np.float32]:
        self.outputs.append(self._system.encode(texts))
        return self.outputs[-1]


def _measure(task: Task, system: System, instruct: Callable[[str], str]) -> _Measured:
    """Return the scores of a system, and its outputs of an even sample of the task's texts."""
    recorded = _Recorded(system)
    scores = task.measure(recorded, instruct)
    outputs = np.concatenate(recorded.outputs)
    return scores, outputs[spread_sample(range(len(outputs)), _COMPARED)]


def instruction(model: Model) -> Callable[[str], str]:
    """Return a function that adds a model's instruction to a question."""

    def instruct(question: str) -> str:
        if model.query_instruction is None:
            return question
        return model.query_instruction_format.format(model.query_instruction, question)

    return instruct


def _check_comparable(model: Model, tasks: Sequence[Task], reference: str) -> None:
    """Raise `BenchError` if a reference does not support a model, or two tasks share a name."""
    decoders = (*DECODER_CLASSES, RERANKER_DECODER)
    if model.model_class == DECODER_ONLY_ICL or (
        model.model_class in decoders and reference != "flagembedding"
    ):
        raise BenchError(
            f"{model.name} is of class {model.model_class}, which cannot be compared with "
            f"{reference} here: encoders can with {' and '.join(SCORE_REFERENCES)}, "
            f"{DECODER_ONLY_BASE} and {RERANKER_DECODER} with flagembedding"
        )

    if len({task.name for task in tasks}) < len(tasks):
        raise BenchError(f"two tasks are called the same: {', '.join(task.name for task in tasks)}")
