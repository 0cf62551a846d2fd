"""Time a bundle against a baseline: one run, two processes, turn by turn.

Each round asks one side and then the other for the same thing, so that a machine that
slows down slows both; a ratio is taken within a round, and the median of those is
reported. Never do both compute at once.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.driver import Worker
from bge_bench.sides import OURS, SideSpec
from bge_runtime.bundle import Bundle
from bge_runtime.parity import TOLERANCES, Parity, compare

QUERY = "how long does glacier ice keep air"

MEASURES = ("corpus_s", "query_p50_ms", "query_p95_ms", "first_vector_s", "process_s")
"""What is timed, in the order of a table."""

_OUR_BATCH_SIZE = 256
"""FlagModel's default; it fills batches by tokens, and this is only the most texts."""

_SETTLE_S = 0.3
"""Pause before a side's turn: the other's idle threads spin for some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What both sides are asked to do.

    Attributes:
        texts: The corpus; at least two different texts.
        rounds: How often everything is measured.
        query_calls: Calls of one query in a round.
        warm_up_texts: Texts of the corpus to embed before anything is timed.
        timeout_s: Longest wait for any one answer.
    """

    texts: Sequence[str]
    rounds: int = 3
    query_calls: int = 50
    warm_up_texts: int = 8
    timeout_s: float = 1800.0


@dataclass(kw_only=True)
class SideResult:
    """The raw numbers of one side, one entry a round.

    Attributes:
        name: Package and version.
        in_force: What executed it.
        corpus_s: Seconds of one ``encode`` of the corpus.
        query_ms: Milliseconds of each call of the query.
        first_vector_s: Seconds from before the import to the first vector, in a new
            process.
        process_s: Seconds from that process's start to its end.
        peak_memory_bytes: Most memory held, over all rounds.
    """

    name: str
    in_force: str
    corpus_s: list[float] = field(default_factory=list)
    query_ms: list[list[float]] = field(default_factory=list)
    first_vector_s: list[float] = field(default_factory=list)
    process_s: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def series(self, measure: str) -> list[float]:
        """Give one of `MEASURES`, one value a round."""
        percent = {"query_p50_ms": 50, "query_p95_ms": 95}.get(measure)
        if percent is not None:
            return [float(np.percentile(calls, percent)) for calls in self.query_ms]
        values: list[float] = getattr(self, measure)
        return values


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both sides, and whether they computed the same.

    Attributes:
        ours: The bundle's numbers.
        baseline: The other side's numbers.
        parity: Our vectors of the corpus against the baseline's.
        precision: Arithmetic of ours, whose tolerance applies.
        failures: Limits of that tolerance that are missed. If there are any, the
            times mean nothing.
    """

    ours: SideResult
    baseline: SideResult
    parity: Parity
    precision: str
    failures: tuple[str, ...]

    def ratio(self, measure: str) -> float:
        """How many times faster ours is: the median of the rounds' own ratios."""
        pairs = zip(self.baseline.series(measure), self.ours.series(measure), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def to_json(self) -> dict[str, Any]:
        """Make a document of it, with medians, ratios and all raw numbers."""
        sides = {
            name: {
                **asdict(result),
                "median": {m: statistics.median(result.series(m)) for m in MEASURES},
            }
            for name, result in (("ours", self.ours), ("baseline", self.baseline))
        }
        return {
            **sides,
            "parity": asdict(self.parity),
            "tolerance": asdict(TOLERANCES[self.precision]),
            "failures": list(self.failures),
            "passed": not self.failures,
            # As in the table: a run whose parity failed has no speed.
            "times_faster": None if self.failures else {m: self.ratio(m) for m in MEASURES},
        }


def side_specs(
    bundle: Bundle,
    checkpoint: Path,
    *,
    baseline: str,
    baseline_batch_size: int,
    threads: int,
    precision: str = "fp32",
) -> tuple[SideSpec, SideSpec]:
    """Describe a bundle and a baseline that do the same work with the same means.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint it was made from.
        baseline: One of `bge_bench.sides.BASELINES`.
        baseline_batch_size: Most texts in a batch of the baseline's.
        threads: Threads of each side.
        precision: Arithmetic of the bundle's side.
    """
    model = bundle.manifest.model
    max_length = min(model.max_length, 512)
    ours = SideSpec(
        side=OURS,
        model=str(bundle.path),
        pooling=model.pooling,
        max_length=max_length,
        batch_size=_OUR_BATCH_SIZE,
        threads=threads,
        precision=precision,
    )
    other = replace(
        ours, side=baseline, model=str(checkpoint.absolute()), batch_size=baseline_batch_size
    )
    return ours, other


def measure_speed(
    ours: SideSpec,
    baseline: SideSpec,
    workload: Workload,
    *,
    step: Callable[[str], object],
) -> Comparison:
    """Time two sides in turn.

    Args:
        ours: How to open the bundle.
        baseline: How to open the baseline.
        workload: What to ask of both.
        step: Told of each of `step_count` steps when it begins.

    Raises:
        BenchError: If a side dies or does not answer in time.
    """
    specs = (ours, baseline)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-bench-")))
        corpus = _save(workload.texts, folder / "corpus.json")
        warm_up = _save(workload.texts[: workload.warm_up_texts], folder / "warm-up.json")
        workers, results = [], []
        for spec in specs:
            step(f"{spec.side}: start and warm up")
            worker = stack.enter_context(_start(spec, workload))
            worker.ask("corpus", texts=warm_up, vectors=str(folder / "unused"))
            worker.ask("query", query=QUERY, calls=5)
            workers.append(worker)
            results.append(SideResult(name=worker.ready["name"], in_force=worker.ready["in_force"]))
        vectors: list[NDArray[np.float32]] = []
        for number in range(workload.rounds):
            of = f"round {number + 1} of {workload.rounds}"
            vectors = []
            for spec, worker, result in zip(specs, workers, results, strict=True):
                step(f"{spec.side}: corpus, {of}")
                file = folder / spec.side
                time.sleep(_SETTLE_S)
                answer = worker.ask("corpus", texts=corpus, vectors=str(file))
                result.corpus_s.append(answer["seconds"])
                vectors.append(np.fromfile(file, answer["dtype"]).reshape(answer["shape"]))
            for spec, worker, result in zip(specs, workers, results, strict=True):
                step(f"{spec.side}: query, {of}")
                time.sleep(_SETTLE_S)
                answer = worker.ask("query", query=QUERY, calls=workload.query_calls)
                result.query_ms.append(answer["ms"])
            for spec, result in zip(specs, results, strict=True):
                step(f"{spec.side}: cold start, {of}")
                time.sleep(_SETTLE_S)
                with _start(spec, workload) as fresh:
                    result.process_s.append(fresh.finish())
                    result.first_vector_s.append(fresh.ready["first_vector_s"])
        for worker, result in zip(workers, results, strict=True):
            result.peak_memory_bytes = worker.ask("memory")["peak_bytes"]
    parity = compare(*vectors)
    return Comparison(
        ours=results[0],
        baseline=results[1],
        parity=parity,
        precision=ours.precision,
        failures=tuple(parity.failures(TOLERANCES[ours.precision])),
    )


def step_count(rounds: int) -> int:
    """Count the steps that `measure_speed` reports."""
    return 2 + 6 * rounds


def _start(spec: SideSpec, workload: Workload) -> Worker:
    return Worker(spec, query=QUERY, timeout_s=workload.timeout_s)


def _save(texts: Sequence[str], path: Path) -> str:
    path.write_text(json.dumps(list(texts)), encoding="utf-8")
    return str(path)
