"""The measurements behind the tables: all candidates take turns, round by round.

A different candidate starts each round, because the first one may find the machine in another
state. Everything is saved in a journal, so that a run can be stopped and resumed. Slow candidates
are timed on a sample of the texts; bge-runtime is timed on all texts and on the sample.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_bench.errors import BenchError
from bge_bench.systems.base import Item, SystemSpec
from bge_bench.systems.lineup import Candidate, own_batch_size
from bge_bench.systems.outputs import characters, compare_outputs
from bge_bench.workers.pool import LazyWorker, Settings, open_workers, start_cold

Work = TypeVar("Work")

_TUNING_TEXTS = 32
"""Texts of the sample that a baseline's batch size is chosen on."""

_TUNING_GROUPS = 4
"""A baseline that is timed on all texts is tuned on this many groups of texts of similar length,
each as large as the largest batch. In a full run such batches have little padding; a sparse sample
would have more."""

_HOPELESS = 1.3
"""The search ends at a batch size this many times slower than the best so far, because the cost of
padding and of cache misses grows with the size. For bge-large on AVX2 the largest size took four
times as long as the next, and two thirds of the tuning time."""

_WARM_UP_TEXTS = 8


def take_turns(
    workers: Sequence[LazyWorker],
    kinds: Mapping[str, Work],
    measure: Callable[[LazyWorker, Work], Any],
    settings: Settings,
    *,
    takes_part: Callable[[LazyWorker, str], bool] = lambda _worker, _kind: True,
) -> dict[str, dict[str, list[Any]]]:
    """Measure each kind of work with every candidate, round by round.

    Args:
        workers: Process of each candidate. A different one starts each round.
        kinds: The work of each kind.
        measure: Measures work with a process.
        settings: Settings of all measurements.
        takes_part: Whether a process does a kind of work.

    Returns:
        The measurements by label and kind, one for each round.
    """
    found: dict[str, dict[str, list[Any]]] = {worker.candidate.label: {} for worker in workers}
    for number in range(settings.rounds):
        first = number * max(1, len(workers) // settings.rounds) % len(workers)
        for kind, work in kinds.items():
            for worker in (*workers[first:], *workers[:first]):
                if takes_part(worker, kind):
                    label = worker.candidate.label
                    value = settings.journal.get(
                        f"{kind}/{label}/{number}", partial(measure, worker, work)
                    )
                    found[label].setdefault(kind, []).append(value)
    return found


def measure_throughput(
    candidates: Sequence[Candidate],
    reference: SystemSpec,
    texts: Sequence[Item],
    sample: Sequence[Item],
    *,
    batch_sizes: Sequence[int],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time ``encode`` of a corpus, and compare the vectors with PyTorch's.

    Args:
        candidates: The candidates.
        reference: Spec of the system whose vectors all are compared with.
        texts: The corpus, for candidates that are timed in full.
        sample: Part of the corpus, for all candidates.
        batch_sizes: Sizes to try; each baseline gets the fastest. Without any, each keeps the one
            that it comes with.
        settings: Settings of all measurements.

    Returns:
        One row for each candidate.
    """
    if settings.pool is not None and batch_sizes:
        _warm_up_like_baselines(candidates, texts, sample, batch_sizes, settings)
    specs = at_their_best(candidates, texts, sample, batch_sizes=batch_sizes, settings=settings)
    _, expected = measure_reference(reference, sample, settings)

    def timed(worker: LazyWorker, corpus: Sequence[Item]) -> dict[str, Any]:
        settings.step(f"{worker.candidate.label}: {len(corpus)} texts")
        seconds, vectors = worker.embed(corpus)
        measured: dict[str, Any] = {"seconds": seconds, **worker.state()}
        if corpus is sample:
            measured["parity"] = asdict(
                compare_outputs(vectors, expected, reranks=reference.reranks)
            )
        return measured

    with open_workers(
        candidates, settings, specs=specs, warm_up=sample[:_WARM_UP_TEXTS]
    ) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = take_turns(
            workers,
            # In full first: a sample is too short for the one-time costs of a long run.
            {"full": texts, "sample": sample},
            timed,
            settings,
            takes_part=lambda worker, kind: kind == "sample" or worker.candidate.in_full,
        )
    for row in rows:
        runs = found[row["label"]]
        for kind in ("sample", "full"):
            row[f"{kind}_s"] = [entry["seconds"] for entry in runs.get(kind, [])]
        row["peak_memory_bytes"] = max(
            entry["peak_bytes"] for entries in runs.values() for entry in entries
        )
        row["parity"] = runs["sample"][-1]["parity"]
        row["in_force"] = runs["sample"][-1]["in_force"]
    return rows


def at_their_best(
    candidates: Sequence[Candidate],
    texts: Sequence[Item],
    sample: Sequence[Item],
    *,
    batch_sizes: Sequence[int],
    settings: Settings,
) -> list[SystemSpec]:
    """Return the spec of each candidate, baselines with the batch size that they are fastest with.

    The arguments are those of `measure_throughput`.
    """
    if not batch_sizes:
        return [
            replace(
                candidate.spec,
                batch_size=candidate.spec.batch_size
                if candidate.ours
                else own_batch_size(candidate.spec),
            )
            for candidate in candidates
        ]
    return [
        candidate.spec
        if candidate.ours
        else replace(
            candidate.spec,
            batch_size=_best(
                candidate,
                _tuning_texts(candidate, texts, sample, largest=max(batch_sizes)),
                batch_sizes,
                settings,
            ),
        )
        for candidate in candidates
    ]


def measure_latency(
    candidates: Sequence[Candidate],
    reference: SystemSpec,
    points: Sequence[tuple[str, Sequence[Item]]],
    *,
    calls: int,
    budget_s: float,
    settings: Settings,
    specs: Sequence[SystemSpec] | None = None,
) -> list[dict[str, Any]]:
    """Time calls of ``encode`` with few texts, or with the pairs of one query.

    Args:
        candidates: The candidates.
        reference: Spec of the system whose vectors all are compared with.
        points: Name and texts of each kind of call.
        calls: Calls of each kind in a round.
        budget_s: Seconds after which a round makes no further calls of a kind.
        settings: Settings of all measurements.
        specs: How to open each candidate; by default as its spec says.

    Returns:
        One row for each candidate.
    """

    def timed(worker: LazyWorker, texts: Sequence[Item]) -> list[float]:
        settings.step(f"{worker.candidate.label}: {len(texts)} short text(s)")
        worker.query_ms(texts, calls=3, budget_s=budget_s / 4)
        return worker.query_ms(texts, calls=calls, budget_s=budget_s)

    _, expected = measure_reference(
        reference, [text for _, texts in points for text in texts], settings
    )

    def parity(worker: LazyWorker) -> dict[str, Any]:
        settings.step(f"{worker.candidate.label}: the vectors")
        # With the same calls that were timed, since a few texts may take another path than one.
        vectors = np.concatenate([worker.embed(texts)[1] for _, texts in points])
        return asdict(compare_outputs(vectors, expected, reranks=reference.reranks))

    def peak(worker: LazyWorker) -> int:
        return int(worker.state()["peak_bytes"])

    with open_workers(candidates, settings, specs=specs) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = take_turns(workers, dict(points), timed, settings)
        for worker, row in zip(workers, rows, strict=True):
            label = worker.candidate.label
            row["ms"] = found[label]
            row["parity"] = settings.journal.get(f"parity/{label}", partial(parity, worker))
            row["peak_memory_bytes"] = settings.journal.get(f"peak/{label}", partial(peak, worker))
    return rows


def measure_cold_start(
    candidates: Sequence[Candidate], *, settings: Settings
) -> list[dict[str, Any]]:
    """Time new processes, from before the import to the first vector and to their end.

    Returns:
        One row for each candidate, with the peak of memory at its first vector.
    """
    numbers = range(-1, settings.rounds)  # the first one reads files into the cache of the system
    for number in numbers:
        for candidate in candidates:
            key = f"start/{candidate.label}/{number}"
            settings.journal.get(key, partial(start_cold, candidate, settings))
    rows = []
    for candidate in candidates:
        runs = [settings.journal.get(f"start/{candidate.label}/{n}", dict) for n in numbers][1:]
        rows.append(
            {
                "label": candidate.label,
                "ours": candidate.ours,
                **{name: runs[0][name] for name in ("name", "precision", "in_force")},
                **{
                    name: [run[name] for run in runs]
                    for name in ("first_vector_s", "process_s", "peak_memory_bytes")
                },
            }
        )
    return rows


def measure_scaling(
    candidates: Sequence[Candidate],
    texts: Sequence[Item],
    sizes: Sequence[int],
    *,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time ``encode`` of corpora of growing size.

    Args:
        candidates: The candidates.
        texts: The largest corpus; the smaller ones are its first texts.
        sizes: Texts in each corpus.
        settings: Settings of all measurements.

    Returns:
        One row for each candidate.
    """

    def timed(worker: LazyWorker, corpus: Sequence[Item]) -> float:
        settings.step(f"{worker.candidate.label}: {len(corpus)} texts")
        return worker.embed(corpus)[0]

    corpora = {str(size): texts[:size] for size in sizes}
    with open_workers(candidates, settings, warm_up=texts[:_WARM_UP_TEXTS]) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = take_turns(workers, corpora, timed, settings)
    return [row | {"seconds": found[row["label"]]} for row in rows]


def measure_memory(
    candidates: Sequence[Candidate],
    chunks: Callable[[], Iterator[Sequence[Item]]],
    *,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Record resident memory over a long run, one candidate after another.

    A stopped run is resumed at the next candidate, because a new process starts with no memory.

    Args:
        candidates: The candidates.
        chunks: Returns the texts of each call of ``encode``.
        settings: Settings of all measurements.

    Returns:
        One row for each candidate, with the bytes held before the first call and after each; on
        a GPU also the bytes in use there, as reported by ``nvidia-smi``.
    """
    rows = []
    for candidate in candidates:

        def watch(candidate: Candidate = candidate) -> dict[str, Any]:
            with open_workers([candidate], settings) as (worker,):
                row, on_gpu = worker.row(), candidate.spec.device != "cpu"
                held, texts = [worker.state()["held_bytes"]], 0
                on_it = [_gpu_bytes(candidate.spec.device)] if on_gpu else []
                for chunk in chunks():
                    settings.step(f"{candidate.label}: texts {texts} to {texts + len(chunk)}")
                    worker.embed(chunk)
                    texts += len(chunk)
                    held.append(worker.state()["held_bytes"])
                    on_it += [_gpu_bytes(candidate.spec.device)] if on_gpu else []
                peak = worker.state()["peak_bytes"]
            more = {"gpu_bytes": on_it} if on_gpu else {}
            return {**row, "texts": texts, "held_bytes": held, "peak_memory_bytes": peak, **more}

        rows.append(settings.journal.get(f"memory/{candidate.label}", watch))
    return rows


def _gpu_bytes(device: str) -> int:
    """Return the bytes in use on a GPU by all programs."""
    index = device.rpartition(":")[2] if ":" in device else "0"
    asked = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, check=True, capture_output=True, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(
            f"`{' '.join(asked)}` does not say what {device} holds: {error}"
        ) from error
    return int(done.stdout.split()[0]) << 20  # "1234 MiB"


def _tuning_texts(
    candidate: Candidate, texts: Sequence[Item], sample: Sequence[Item], *, largest: int
) -> list[Item]:
    if not candidate.in_full:
        return list(sample[:: max(1, len(sample) // _TUNING_TEXTS)][:_TUNING_TEXTS])
    group = min(largest, max(1, len(texts) // _TUNING_GROUPS))
    by_length = sorted(texts, key=characters)
    middles = (
        len(texts) * (2 * number + 1) // (2 * _TUNING_GROUPS) for number in range(_TUNING_GROUPS)
    )
    starts = [max(0, middle - group // 2) for middle in middles]
    return [text for start in starts for text in by_length[start : start + group]]


def _warm_up_like_baselines(
    candidates: Sequence[Candidate],
    texts: Sequence[Item],
    sample: Sequence[Item],
    batch_sizes: Sequence[int],
    settings: Settings,
) -> None:
    """Embed with bge-runtime what the baselines embed while their batch size is chosen."""
    for candidate in candidates:
        if candidate.ours:
            given = _tuning_texts(candidate, texts, sample, largest=max(batch_sizes))
            with open_workers([candidate], settings) as (worker,):
                for _ in batch_sizes:
                    worker.embed(given)


def _one_batch_a_group(texts: Sequence[Item], size: int) -> list[Item]:
    group = -(-len(texts) // _TUNING_GROUPS)
    return [
        text for at in range(0, len(texts), group) for text in texts[at : at + min(size, group)]
    ]


def _best(
    candidate: Candidate, texts: Sequence[Item], sizes: Sequence[int], settings: Settings
) -> int:
    """Return the batch size that a baseline is fastest with, tried from the smallest up."""
    if len(sizes) == 1:
        return sizes[0]

    def seconds(worker: LazyWorker, size: int) -> float:
        settings.step(f"{candidate.label}: batches of {size}")
        # Warm up: libraries compile a kernel or choose an algorithm for each new shape. On a GPU
        # one batch of each length is enough.
        warm_up = texts if settings.pool is None else _one_batch_a_group(texts, size)
        worker.embed(warm_up, batch_size=size)
        return worker.embed(texts, batch_size=size)[0]

    taken: dict[int, float] = {}
    with open_workers([candidate], settings, warm_up=texts[:2]) as (worker,):
        for size in sorted(sizes):
            key = f"tune/{candidate.label}/{size}"
            taken[size] = settings.journal.get(key, partial(seconds, worker, size))
            if taken[size] > _HOPELESS * min(taken.values()):
                break
    return min(taken, key=taken.__getitem__)


def measure_reference(
    reference: SystemSpec, texts: Sequence[Item], settings: Settings
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return the vectors of the reference.

    Args:
        reference: Spec of the reference.
        texts: The texts.
        settings: Settings of all measurements.

    Returns:
        Its name, its precision and what is in force, and the vectors that all are compared with.
        Shape: ``(len(texts), dim)``.
    """
    candidate = Candidate(label="the reference", spec=reference, in_full=False)

    with open_workers([candidate], settings) as (worker,):

        def vectors() -> dict[str, Any]:
            settings.step(f"the reference's vectors of {len(texts)} texts")
            rows = worker.embed(texts)[1].astype("<f4")
            return {"shape": rows.shape, "float32": base64.b64encode(rows.tobytes()).decode()}

        kept = settings.journal.get("reference", vectors)
        rows = np.frombuffer(base64.b64decode(kept["float32"]), "<f4")
        return worker.row(), rows.reshape(kept["shape"]).astype(np.float32)
