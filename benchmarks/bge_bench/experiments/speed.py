"""Time a bundle against baselines: one run, a process each, turn by turn.

Each round asks one side after another for the same thing, so that a machine that slows
down slows all; a ratio is taken within a round, and the median of those is reported.
Never do two compute at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bge_bench.errors import BenchError
from bge_bench.experiments.timing import measure_reference, take_turns
from bge_bench.systems.base import GPU_BASELINES, PYTORCH, SideSpec
from bge_bench.systems.lineup import Entrant, baseline_side, our_side
from bge_bench.workers.journal import Journal
from bge_bench.workers.pool import QUERY, LazyWorker, Settings, open_workers, start_cold
from bge_runtime.bundle import TOLERANCES, Bundle, Parity, compare
from bge_runtime.sources import DECODER_CLASSES, ENCODER_ONLY_M3

MEASURES = ("corpus_s", "query_p50_ms", "query_p95_ms", "first_vector_s", "process_s")
"""What is timed, in the order of a table."""


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
        baselines: How to open each baseline; at least one, and another side each.
        reference: Whose vectors all are held against: PyTorch's in fp32, from the checkpoint,
            so that a bundle cannot be its own witness. It has a process of its own, which is
            not timed.
    """

    ours: SideSpec
    baselines: tuple[SideSpec, ...]
    reference: SideSpec


@dataclass(frozen=True, kw_only=True)
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
        parity: Its vectors of the corpus against the reference's.
    """

    name: str
    precision: str
    in_force: str
    corpus_s: list[float]
    query_ms: list[list[float]]
    first_vector_s: list[float]
    process_s: list[float]
    peak_memory_bytes: int
    parity: Parity

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
        baselines: Names out of `bge_bench.systems.base.BASELINES`; the first that PyTorch
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
    lineup: Lineup,
    workload: Workload,
    *,
    step: Callable[[str], object],
    journal: Journal | None = None,
) -> Comparison:
    """Time all sides in turn.

    Args:
        lineup: Who is compared.
        workload: What to ask of each.
        step: Told of each of `step_count` steps when it begins.
        journal: Where measurements are kept, and those of a stopped run found.

    Raises:
        BenchError: If a side dies, does not answer in time, or computes in a precision
            that has no tolerance.
    """
    settings = Settings(
        journal=journal or Journal(None, {}),
        step=step,
        rounds=workload.rounds,
        timeout_s=workload.timeout_s,
    )
    reference, expected = measure_reference(lineup.reference, workload.texts, settings)

    def corpus(worker: LazyWorker) -> dict[str, Any]:
        step(f"{worker.entrant.label}: corpus")
        seconds, vectors = worker.embed(workload.texts)
        parity = asdict(compare(vectors, expected))
        return {"seconds": seconds, "peak": worker.state()["peak_bytes"], "parity": parity}

    def query(worker: LazyWorker) -> list[float]:
        step(f"{worker.entrant.label}: query")
        worker.query_ms([QUERY], calls=5)
        return worker.query_ms([QUERY], calls=workload.query_calls)

    def start(worker: LazyWorker) -> dict[str, Any]:
        worker.state()  # whose process has read the files once, in a run that goes on as well
        return start_cold(worker.entrant, settings)

    specs = (lineup.ours, *lineup.baselines)
    entrants = [Entrant(label=spec.side, spec=spec, in_full=True) for spec in specs]
    kinds = {"corpus": corpus, "query": query, "start": start}
    warm_up = workload.texts[: workload.warm_up_texts]
    with open_workers(entrants, settings, warm_up=warm_up) as workers:
        rows = [worker.row() for worker in workers]
        found = take_turns(workers, kinds, lambda worker, measure: measure(worker), settings)
    ours, *baselines = (_result(row, found[row["label"]]) for row in rows)
    return Comparison(
        ours=ours,
        baselines=tuple(baselines),
        reference=reference["name"],
        reference_in_force=reference["in_force"],
    )


def step_count(lineup: Lineup, rounds: int) -> int:
    """Count the steps that `measure_speed` reports; one that goes on has fewer."""
    of_the_reference = 2
    return of_the_reference + (1 + len(lineup.baselines)) * (1 + 3 * rounds)


def _result(row: dict[str, Any], found: dict[str, list[Any]]) -> SideResult:
    return SideResult(
        **{name: row[name] for name in ("name", "precision", "in_force")},
        corpus_s=[entry["seconds"] for entry in found["corpus"]],
        query_ms=found["query"],
        first_vector_s=[entry["first_vector_s"] for entry in found["start"]],
        process_s=[entry["process_s"] for entry in found["start"]],
        peak_memory_bytes=max(entry["peak"] for entry in found["corpus"]),
        parity=Parity(**found["corpus"][-1]["parity"]),
    )
