"""Time a bundle against baselines: one run, a process each, turn by turn.

Each round asks one side after another for the same thing, so that a machine that slows
down slows all; a ratio is taken within a round, and the median of those is reported.
Never do two compute at once.
"""

from __future__ import annotations

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
from bge_bench.errors import BenchError
from bge_bench.sides import FROM_CHECKPOINT, GPU_BASELINES, OURS, PYTORCH, SideSpec
from bge_runtime.bundle import Bundle
from bge_runtime.parity import TOLERANCES, Parity, compare
from bge_runtime.registry import DECODER_CLASSES, ENCODER_ONLY_M3

QUERY = "how long does glacier ice keep air"

MEASURES = ("corpus_s", "query_p50_ms", "query_p95_ms", "first_vector_s", "process_s")
"""What is timed, in the order of a table."""

_OUR_BATCH_SIZE = 256
"""FlagModel's default; it fills batches by tokens, and this is only the most texts."""

_SETTLE_S = 0.3
"""Pause before a side's turn: another's idle threads spin for some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What all sides are asked to do.

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


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """Who is compared.

    Attributes:
        ours: How to open the bundle.
        baselines: How to open each baseline; at least one.
        reference: Whose vectors all others' are held against: PyTorch's in fp32, from
            the checkpoint, so that a bundle cannot be its own witness. One of the
            baselines, or another side that is not timed.
    """

    ours: SideSpec
    baselines: tuple[SideSpec, ...]
    reference: SideSpec


@dataclass(kw_only=True)
class SideResult:
    """The raw numbers of one side, one entry a round.

    Attributes:
        name: Package and version.
        precision: Arithmetic in force, whose tolerance applies.
        in_force: What executed it.
        corpus_s: Seconds of one ``encode`` of the corpus.
        query_ms: Milliseconds of each call of the query.
        first_vector_s: Seconds from before the import to the first vector, in a new
            process.
        process_s: Seconds from that process's start to its end.
        peak_memory_bytes: Most memory held, over all rounds.
        parity: Its vectors of the corpus against the reference's; known in the end.
    """

    name: str
    precision: str
    in_force: str
    corpus_s: list[float] = field(default_factory=list)
    query_ms: list[list[float]] = field(default_factory=list)
    first_vector_s: list[float] = field(default_factory=list)
    process_s: list[float] = field(default_factory=list)
    peak_memory_bytes: int = 0
    parity: Parity = field(init=False)

    @property
    def failures(self) -> list[str]:
        """Limits of its tolerance that are missed. If there are any, its times mean nothing."""
        return self.parity.failures(TOLERANCES[self.precision])

    def series(self, measure: str) -> list[float]:
        """Give one of `MEASURES`, one value a round."""
        percent = {"query_p50_ms": 50, "query_p95_ms": 95}.get(measure)
        if percent is not None:
            return [float(np.percentile(calls, percent)) for calls in self.query_ms]
        values: list[float] = getattr(self, measure)
        return values

    def median(self, measure: str) -> float:
        """Give the median of one of `MEASURES` over the rounds."""
        return statistics.median(self.series(measure))

    def to_json(self) -> dict[str, Any]:
        """Make a document of it, with medians, tolerance and all raw numbers."""
        return {
            **asdict(self),
            "median": {measure: self.median(measure) for measure in MEASURES},
            "tolerance": asdict(TOLERANCES[self.precision]),
            "failures": self.failures,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All sides, and whether they computed the same.

    Attributes:
        ours: The bundle's numbers.
        baselines: Each baseline's numbers.
        reference: Name of the side whose vectors are the reference.
        reference_in_force: What executed that.
    """

    ours: SideResult
    baselines: tuple[SideResult, ...]
    reference: str
    reference_in_force: str

    @property
    def comparable(self) -> list[SideResult]:
        """Baselines that there are ratios against: all whose parity holds, if ours does."""
        if self.ours.failures:
            return []
        return [baseline for baseline in self.baselines if not baseline.failures]

    def ratio(self, baseline: SideResult, measure: str) -> float:
        """How many times faster ours is: the median of the rounds' own ratios."""
        pairs = zip(baseline.series(measure), self.ours.series(measure), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def to_json(self) -> dict[str, Any]:
        """Make a document of it, with medians, ratios and all raw numbers."""
        comparable = self.comparable
        return {
            "ours": self.ours.to_json(),
            "baselines": [
                {
                    **baseline.to_json(),
                    # As in the table: a side whose parity failed has no speed.
                    "times_faster": {m: self.ratio(baseline, m) for m in MEASURES}
                    if baseline in comparable
                    else None,
                }
                for baseline in self.baselines
            ],
            "reference": {"name": self.reference, "in_force": self.reference_in_force},
            "passed": not self.ours.failures,
        }


def our_side(bundle: Bundle, *, threads: int, device: str = "cpu") -> SideSpec:
    """Describe a bundle as its users open it, for texts of 512 tokens at most."""
    model = bundle.manifest.model
    return SideSpec(
        side=OURS,
        model=str(bundle.path.absolute()),
        pooling=model.pooling,
        max_length=min(model.max_length, 512),
        batch_size=_OUR_BATCH_SIZE,
        threads=threads,
        precision="auto",
        model_class=model.model_class,
        device=device,
    )


def baseline_side(ours: SideSpec, side: str, checkpoint: Path) -> SideSpec:
    """Describe a baseline that does the work of ours; it reads the checkpoint or the bundle."""
    folder = str(checkpoint.absolute()) if side in FROM_CHECKPOINT else ours.model
    return replace(ours, side=side, model=folder)


def line_up(
    bundle: Bundle,
    checkpoint: Path,
    *,
    baselines: Sequence[str],
    baseline_batch_size: int,
    threads: int,
    precision: str = "auto",
    all_outputs: bool = False,
    device: str = "cpu",
) -> Lineup:
    """Describe a bundle and baselines that do the same work with the same means.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint it was made from.
        baselines: Names out of `bge_bench.sides.BASELINES`; the first that PyTorch
            computes is the reference. If none is, transformers is asked beside them.
        baseline_batch_size: Most texts in a batch of a baseline's.
        threads: Threads of each side.
        precision: Arithmetic of the sides that have a choice; ``"auto"`` is their own.
        all_outputs: Of BGE-M3, time lexical weights and ColBERT vectors too.
        device: Device of all sides.

    Raises:
        BenchError: If a side does not have all outputs, or does not run on the device.
    """
    model = bundle.manifest.model
    alone = set(baselines) == {"flagembedding"}
    if model.model_class in DECODER_CLASSES and not alone:
        raise BenchError(
            f"{model.name} is a decoder, and is compared with FlagEmbedding only, not with "
            f"{', '.join(baselines)}"
        )
    if all_outputs and (model.model_class != ENCODER_ONLY_M3 or not alone):
        raise BenchError(
            f"--outputs all compares BGE-M3 with FlagEmbedding only, not {model.name} with "
            f"{', '.join(baselines)}"
        )
    elsewhere = sorted(set(baselines) - set(GPU_BASELINES)) if device != "cpu" else []
    if elsewhere:
        raise BenchError(
            f"{', '.join(elsewhere)} runs on a CPU here; on {device} there are "
            f"{', '.join(GPU_BASELINES)}"
        )
    ours = replace(
        our_side(bundle, threads=threads, device=device),
        precision=precision,
        all_outputs=all_outputs,
    )

    def other(side: str) -> SideSpec:
        spec = baseline_side(ours, side, checkpoint)
        return replace(spec, batch_size=baseline_batch_size)

    reference = next((side for side in baselines if side in PYTORCH), "transformers")
    return Lineup(
        ours=ours,
        baselines=tuple(other(side) for side in baselines),
        reference=other(reference)
        if device == "cpu"
        else replace(other(reference), precision="fp32"),
    )


def measure_speed(
    lineup: Lineup, workload: Workload, *, step: Callable[[str], object]
) -> Comparison:
    """Time all sides in turn.

    Args:
        lineup: Who is compared.
        workload: What to ask of each.
        step: Told of each of `step_count` steps when it begins.

    Raises:
        BenchError: If a side dies, does not answer in time, or computes in a precision
            that has no tolerance.
    """
    specs = (lineup.ours, *lineup.baselines)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-bench-")))
        warm_up = workload.texts[: workload.warm_up_texts]
        workers, results = [], []
        for spec in specs:
            step(f"{spec.side}: start and warm up")
            worker = stack.enter_context(_start(spec, workload))
            worker.embed(warm_up, folder)
            worker.ask("query", query=QUERY, calls=5)
            workers.append(worker)
            results.append(_new_result(worker))
        vectors: list[NDArray[np.float32]] = []
        for number in range(workload.rounds):
            of = f"round {number + 1} of {workload.rounds}"
            vectors = []
            for spec, worker, result in zip(specs, workers, results, strict=True):
                step(f"{spec.side}: corpus, {of}")
                time.sleep(_SETTLE_S)
                seconds, rows = worker.embed(workload.texts, folder)
                result.corpus_s.append(seconds)
                vectors.append(rows)
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
            result.peak_memory_bytes = worker.ask("state")["peak_bytes"]
        if lineup.reference in lineup.baselines:
            position = 1 + lineup.baselines.index(lineup.reference)
            reference, expected = results[position], vectors[position]
        else:
            step(f"{lineup.reference.side}: the reference's vectors")
            with _start(lineup.reference, workload) as worker:
                reference, expected = _new_result(worker), worker.embed(workload.texts, folder)[1]
    for result, rows in zip(results, vectors, strict=True):
        result.parity = compare(rows, expected)
    return Comparison(
        ours=results[0],
        baselines=tuple(results[1:]),
        reference=reference.name,
        reference_in_force=reference.in_force,
    )


def step_count(lineup: Lineup, rounds: int) -> int:
    """Count the steps that `measure_speed` reports."""
    untimed = lineup.reference not in lineup.baselines
    return (1 + len(lineup.baselines)) * (1 + 3 * rounds) + untimed


def _start(spec: SideSpec, workload: Workload) -> Worker:
    return Worker(spec, query=QUERY, timeout_s=workload.timeout_s)


def what_runs(worker: Worker) -> dict[str, Any]:
    """Tell a side's name, its precision and what is in force, as it says itself.

    Raises:
        BenchError: If there is no tolerance for the precision.
    """
    ready = worker.ready
    if ready["precision"] not in TOLERANCES:
        raise BenchError(
            f"{ready['name']} computes in {ready['precision']} on this machine, and there are "
            f"tolerances for {', '.join(TOLERANCES)} only. Leave it out, or hold "
            "it to fp32 with bge-bench speed --precision fp32"
        )
    return {name: ready[name] for name in ("name", "precision", "in_force")}


def _new_result(worker: Worker) -> SideResult:
    return SideResult(**what_runs(worker))
