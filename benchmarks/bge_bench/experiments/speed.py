"""Time a bundle against baselines, each in its own process, in turns.

In each round the systems do the same work one after another, so that a machine that slows down
slows all of them. Ratios are computed within a round, and their median is reported. Two systems
never compute at the same time.
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
from bge_bench.systems.base import DECODER_RERANKERS, GPU_BASELINES, PYTORCH, Item, SystemSpec
from bge_bench.systems.lineup import Candidate, Int8Model, baseline_system, our_system
from bge_bench.systems.outputs import AnyParity, compare_outputs, is_void, tolerance
from bge_bench.workers.journal import Journal
from bge_bench.workers.pool import LazyWorker, Settings, open_workers, start_cold
from bge_runtime.bundle import Bundle, parse_parity
from bge_runtime.sources import DECODER_CLASSES, ENCODER_ONLY_M3, RERANKER_DECODER

MEASURES = ("corpus_s", "query_p50_ms", "query_p95_ms", "first_vector_s", "process_s")
"""The measured times, in the order of a table."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work that all systems do.

    Attributes:
        texts: The corpus; at least two different texts, or for a reranker pairs.
        rounds: Number of times that everything is measured.
        query_calls: Calls with one query in a round.
        warm_up_texts: Texts of the corpus to embed before the timing.
        timeout_s: Longest wait for an answer.
    """

    texts: Sequence[Item]
    rounds: int = 3
    query_calls: int = 50
    warm_up_texts: int = 8
    timeout_s: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class Lineup:
    """The systems of a comparison.

    Attributes:
        ours: Spec of bge-runtime with the bundle.
        baselines: Spec of each baseline; at least one, all different systems.
        reference: Spec of the system whose vectors all are compared with: PyTorch in fp32, which
            reads the checkpoint and not the bundle. It has its own process, which is not timed.
    """

    ours: SystemSpec
    baselines: tuple[SystemSpec, ...]
    reference: SystemSpec


@dataclass(frozen=True, kw_only=True)
class SystemResult:
    """The raw numbers of one system, one entry for each round.

    Attributes:
        name: Package and version.
        precision: Precision in force, whose tolerance applies.
        in_force: Description of what ran.
        corpus_s: Seconds of one ``encode`` of the corpus.
        query_ms: Milliseconds of each call of the query.
        first_vector_s: Seconds from before the import to the first vector, in a new
            process.
        process_s: Seconds from that process's start to its end.
        peak_memory_bytes: Most memory held, over all rounds.
        parity: Its vectors of the corpus, or its scores, against the reference's.
    """

    name: str
    precision: str
    in_force: str
    corpus_s: list[float]
    query_ms: list[list[float]]
    first_vector_s: list[float]
    process_s: list[float]
    peak_memory_bytes: int
    parity: AnyParity

    @property
    def failures(self) -> list[str]:
        """Limits of its tolerance that are missed. If there are any, its times are invalid."""
        return self.parity.failures(self.precision)

    def series(self, measure: str) -> list[float]:
        """Return one of `MEASURES`, one value for each round."""
        percent = {"query_p50_ms": 50, "query_p95_ms": 95}.get(measure)
        if percent is not None:
            return [float(np.percentile(calls, percent)) for calls in self.query_ms]
        values: list[float] = getattr(self, measure)
        return values

    def median(self, measure: str) -> float:
        """Return the median of one of `MEASURES` over the rounds."""
        return statistics.median(self.series(measure))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with medians, tolerance and all raw numbers."""
        return {
            **asdict(self),
            "median": {measure: self.median(measure) for measure in MEASURES},
            "tolerance": tolerance(self.parity, self.precision),
            "failures": self.failures,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The results of all systems, and whether their vectors agree.

    Attributes:
        ours: The bundle's numbers.
        baselines: Each baseline's numbers.
        reference: Name of the reference.
        reference_in_force: Description of what ran it.
    """

    ours: SystemResult
    baselines: tuple[SystemResult, ...]
    reference: str
    reference_in_force: str

    @property
    def comparable(self) -> list[SystemResult]:
        """Baselines that have a ratio: those whose vectors count, if bge-runtime's do."""
        if self.ours.failures:
            return []
        return [baseline for baseline in self.baselines if not self.is_void(baseline)]

    def is_void(self, system: SystemResult) -> bool:
        """Return whether a system's outputs are not the reference's; see `is_void`."""
        return is_void(system.parity, system.precision, ours=system is self.ours)

    def ratio(self, baseline: SystemResult, measure: str) -> float:
        """Return how many times faster bge-runtime is: the median of the ratios of all rounds."""
        pairs = zip(baseline.series(measure), self.ours.series(measure), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with medians, ratios and all raw numbers."""
        comparable = self.comparable
        return {
            "ours": self.ours.to_json(),
            "baselines": [
                {
                    **baseline.to_json(),
                    # As in the table: a system that fails its tolerance has no speed.
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
    int8_model: Int8Model | None = None,
) -> Lineup:
    """Return the specs of a bundle and of baselines that do the same work.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint it was made from.
        baselines: Names out of `bge_bench.systems.base.ALL_BASELINES`; the first that PyTorch
            computes is the reference. Without one, transformers is the reference.
        baseline_batch_size: Most texts in a batch of a baseline.
        threads: Threads of each system.
        precision: Precision of the systems that offer a choice; ``"auto"`` is their default.
        all_outputs: For BGE-M3, also time lexical weights and ColBERT vectors.
        device: Device of all systems.
        int8_model: Makes the models of baselines in int8; see `baseline_system`.

    Raises:
        BenchError: If a system does not have all outputs, or does not run on the device.
    """
    model = bundle.manifest.model
    alone = set(baselines) == {"flagembedding"}
    if model.model_class in DECODER_CLASSES and not alone:
        raise BenchError(
            f"{model.name} is a decoder, and is compared with FlagEmbedding only, not with "
            f"{', '.join(baselines)}"
        )
    if model.model_class == RERANKER_DECODER and not {*baselines} <= {*DECODER_RERANKERS}:
        raise BenchError(
            f"{model.name} is a decoder that reranks, and is compared with "
            f"{' and '.join(DECODER_RERANKERS)} only, not with {', '.join(baselines)}"
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
        our_system(bundle, threads=threads, device=device),
        precision=precision,
        all_outputs=all_outputs,
    )

    def other(system: str) -> SystemSpec:
        spec = baseline_system(ours, system, checkpoint, int8_model)
        return replace(spec, batch_size=baseline_batch_size)

    reference = next((system for system in baselines if system in PYTORCH), "transformers")
    return Lineup(
        ours=ours,
        baselines=tuple(other(system) for system in baselines),
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
    """Time all systems in turns.

    Args:
        lineup: The systems.
        workload: The work of each.
        step: Called with a message before each of `step_count` steps.
        journal: Journal that keeps the measurements, and holds those of a stopped run.

    Raises:
        BenchError: If a system dies, does not answer in time, or computes in a precision
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
        step(f"{worker.candidate.label}: corpus")
        seconds, vectors = worker.embed(workload.texts)
        parity = asdict(compare_outputs(vectors, expected, reranks=lineup.reference.reranks))
        return {"seconds": seconds, "peak": worker.state()["peak_bytes"], "parity": parity}

    def query(worker: LazyWorker) -> list[float]:
        step(f"{worker.candidate.label}: query")
        first = [worker.spec.first]
        worker.query_ms(first, calls=5)
        return worker.query_ms(first, calls=workload.query_calls)

    def start(worker: LazyWorker) -> dict[str, Any]:
        worker.state()  # starts its process, so that the files are cached in a resumed run as well
        return start_cold(worker.candidate, settings)

    specs = (lineup.ours, *lineup.baselines)
    candidates = [Candidate(label=spec.system, spec=spec, in_full=True) for spec in specs]
    kinds = {"corpus": corpus, "query": query, "start": start}
    warm_up = workload.texts[: workload.warm_up_texts]
    with open_workers(candidates, settings, warm_up=warm_up) as workers:
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
    """Return the number of steps of `measure_speed`; a resumed run has fewer."""
    of_the_reference = 2
    return of_the_reference + (1 + len(lineup.baselines)) * (1 + 3 * rounds)


def _result(row: dict[str, Any], found: dict[str, list[Any]]) -> SystemResult:
    return SystemResult(
        **{name: row[name] for name in ("name", "precision", "in_force")},
        corpus_s=[entry["seconds"] for entry in found["corpus"]],
        query_ms=found["query"],
        first_vector_s=[entry["first_vector_s"] for entry in found["start"]],
        process_s=[entry["process_s"] for entry in found["start"]],
        peak_memory_bytes=max(entry["peak"] for entry in found["corpus"]),
        parity=parse_parity(found["corpus"][-1]["parity"]),
    )
