"""What the tables are made of: each measure asks all entrants in turn, round by round.

Another one begins each round, since what runs first may find the machine in another state.
Everything goes through a journal, so that a run can be stopped and resumed. Where only a
sample of the texts is timed of a slow entrant, ours is timed on that sample as well.
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
from bge_bench.systems.base import SideSpec
from bge_bench.systems.lineup import Entrant
from bge_bench.workers.pool import LazyWorker, Settings, open_workers, start_cold
from bge_runtime.bundle import compare

Work = TypeVar("Work")

_TUNING_TEXTS = 32
"""Texts on which a baseline's batch size is chosen, from a sample."""

_TUNING_GROUPS = 4
"""For a baseline that is timed on all texts they are so many groups of neighbours in length, each
as large as the largest batch: there batches of neighbours are hardly padded, and in a sample they
would be."""

_HOPELESS = 1.3
"""A batch size so many times slower than a smaller one ends the search: what is lost to padding
and caches grows with the size. With bge-large on AVX2 the largest took four times as long as the
next, and two thirds of the time of choosing."""

_WARM_UP_TEXTS = 8


def take_turns(
    workers: Sequence[LazyWorker],
    kinds: Mapping[str, Work],
    measure: Callable[[LazyWorker, Work], Any],
    settings: Settings,
    *,
    takes_part: Callable[[LazyWorker, str], bool] = lambda _worker, _kind: True,
) -> dict[str, dict[str, list[Any]]]:
    """Measure each kind of work with everyone, round by round.

    Args:
        workers: Everyone's process. Another one begins each round.
        kinds: What to do of each kind.
        measure: Does it with a process.
        settings: What all measures share.
        takes_part: Whether a process has a part in a kind.

    Returns:
        What was measured: by label and kind, one entry a round.
    """
    found: dict[str, dict[str, list[Any]]] = {worker.entrant.label: {} for worker in workers}
    for number in range(settings.rounds):
        first = number * max(1, len(workers) // settings.rounds) % len(workers)
        for kind, work in kinds.items():
            for worker in (*workers[first:], *workers[:first]):
                if takes_part(worker, kind):
                    label = worker.entrant.label
                    value = settings.journal.get(
                        f"{kind}/{label}/{number}", partial(measure, worker, work)
                    )
                    found[label].setdefault(kind, []).append(value)
    return found


def measure_throughput(
    entrants: Sequence[Entrant],
    reference: SideSpec,
    texts: Sequence[str],
    sample: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time ``encode`` of a corpus, and compare the vectors with PyTorch's.

    Args:
        entrants: Who is timed.
        reference: How to open what computes the vectors that all are held against.
        texts: The corpus, for those that are timed in full.
        sample: Some of it, for all.
        batch_sizes: Out of which a baseline gets the one that it is fastest with.
        settings: What all measures share.

    Returns:
        One document an entrant.
    """
    if settings.pool is not None:
        _warm_up_like_baselines(entrants, texts, sample, batch_sizes, settings)
    specs = [
        entrant.spec
        if entrant.ours
        else replace(
            entrant.spec,
            batch_size=_best(
                entrant,
                _tuning_texts(entrant, texts, sample, largest=max(batch_sizes)),
                batch_sizes,
                settings,
            ),
        )
        for entrant in entrants
    ]
    _, expected = measure_reference(reference, sample, settings)

    def timed(worker: LazyWorker, corpus: Sequence[str]) -> dict[str, Any]:
        settings.step(f"{worker.entrant.label}: {len(corpus)} texts")
        seconds, vectors = worker.embed(corpus)
        measured: dict[str, Any] = {"seconds": seconds, **worker.state()}
        if corpus is sample:
            measured["parity"] = asdict(compare(vectors, expected))
        return measured

    with open_workers(entrants, settings, specs=specs, warm_up=sample[:_WARM_UP_TEXTS]) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = take_turns(
            workers,
            # A sample is too short for what a process does once in a long run.
            {"full": texts, "sample": sample},
            timed,
            settings,
            takes_part=lambda worker, kind: kind == "sample" or worker.entrant.in_full,
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


def measure_latency(
    entrants: Sequence[Entrant],
    reference: SideSpec,
    points: Sequence[tuple[str, Sequence[str]]],
    *,
    calls: int,
    budget_s: float,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time calls of ``encode`` with few texts.

    Args:
        entrants: Who is timed.
        reference: How to open what computes the vectors that all are held against.
        points: A name and the texts of one call, for each kind of call.
        calls: Calls of each kind in a round.
        budget_s: Where they take longer than that together, fewer.
        settings: What all measures share.

    Returns:
        One document an entrant.
    """

    def timed(worker: LazyWorker, texts: Sequence[str]) -> list[float]:
        settings.step(f"{worker.entrant.label}: {len(texts)} short text(s)")
        worker.query_ms(texts, calls=3, budget_s=budget_s / 4)
        return worker.query_ms(texts, calls=calls, budget_s=budget_s)

    _, expected = measure_reference(
        reference, [text for _, texts in points for text in texts], settings
    )

    def parity(worker: LazyWorker) -> dict[str, Any]:
        settings.step(f"{worker.entrant.label}: the vectors")
        # By the calls that were timed: a few texts at once may go another way than one.
        vectors = np.concatenate([worker.embed(texts)[1] for _, texts in points])
        return asdict(compare(vectors, expected))

    with open_workers(entrants, settings) as workers:
        rows = [worker.row() for worker in workers]
        found = take_turns(workers, dict(points), timed, settings)
        for worker, row in zip(workers, rows, strict=True):
            label = worker.entrant.label
            row["ms"] = found[label]
            row["parity"] = settings.journal.get(f"parity/{label}", partial(parity, worker))
    return rows


def measure_cold_start(entrants: Sequence[Entrant], *, settings: Settings) -> list[dict[str, Any]]:
    """Time new processes, from before the import to the first vector and to the end.

    Returns:
        One document an entrant, with the peak of memory at its first vector.
    """
    numbers = range(-1, settings.rounds)  # the first one reads files that the others find cached
    for number in numbers:
        for entrant in entrants:
            key = f"start/{entrant.label}/{number}"
            settings.journal.get(key, partial(start_cold, entrant, settings))
    rows = []
    for entrant in entrants:
        runs = [settings.journal.get(f"start/{entrant.label}/{n}", dict) for n in numbers][1:]
        rows.append(
            {
                "label": entrant.label,
                "ours": entrant.ours,
                **{name: runs[0][name] for name in ("name", "precision", "in_force")},
                **{
                    name: [run[name] for run in runs]
                    for name in ("first_vector_s", "process_s", "peak_memory_bytes")
                },
            }
        )
    return rows


def measure_scaling(
    entrants: Sequence[Entrant],
    texts: Sequence[str],
    sizes: Sequence[int],
    *,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time ``encode`` of corpora of growing size.

    Args:
        entrants: Who is timed.
        texts: The largest corpus; the others are its beginnings.
        sizes: Texts in each corpus.
        settings: What all measures share.

    Returns:
        One document an entrant.
    """

    def timed(worker: LazyWorker, corpus: Sequence[str]) -> float:
        settings.step(f"{worker.entrant.label}: {len(corpus)} texts")
        return worker.embed(corpus)[0]

    corpora = {str(size): texts[:size] for size in sizes}
    with open_workers(entrants, settings, warm_up=texts[:_WARM_UP_TEXTS]) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = take_turns(workers, corpora, timed, settings)
    return [row | {"seconds": found[row["label"]]} for row in rows]


def measure_memory(
    entrants: Sequence[Entrant],
    chunks: Callable[[], Iterator[Sequence[str]]],
    *,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Watch resident memory over a long run, one entrant after another.

    Nothing of it can be resumed within an entrant's run: a new process has held nothing yet.

    Args:
        entrants: Who is watched.
        chunks: Gives the texts of each call of ``encode``.
        settings: What all measures share.

    Returns:
        One document an entrant, with bytes held before the first call and after each; on a GPU
        with those in use there as well, as the driver's ``nvidia-smi`` tells.
    """
    rows = []
    for entrant in entrants:

        def watch(entrant: Entrant = entrant) -> dict[str, Any]:
            with open_workers([entrant], settings) as (worker,):
                row, on_gpu = worker.row(), entrant.spec.device != "cpu"
                held, texts = [worker.state()["held_bytes"]], 0
                on_it = [_gpu_bytes(entrant.spec.device)] if on_gpu else []
                for chunk in chunks():
                    settings.step(f"{entrant.label}: texts {texts} to {texts + len(chunk)}")
                    worker.embed(chunk)
                    texts += len(chunk)
                    held.append(worker.state()["held_bytes"])
                    on_it += [_gpu_bytes(entrant.spec.device)] if on_gpu else []
                peak = worker.state()["peak_bytes"]
            more = {"gpu_bytes": on_it} if on_gpu else {}
            return {**row, "texts": texts, "held_bytes": held, "peak_memory_bytes": peak, **more}

        rows.append(settings.journal.get(f"memory/{entrant.label}", watch))
    return rows


def _gpu_bytes(device: str) -> int:
    """Tell the bytes in use on a GPU, by whatever uses it."""
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
    entrant: Entrant, texts: Sequence[str], sample: Sequence[str], *, largest: int
) -> list[str]:
    if not entrant.in_full:
        return list(sample[:: max(1, len(sample) // _TUNING_TEXTS)][:_TUNING_TEXTS])
    group = min(largest, max(1, len(texts) // _TUNING_GROUPS))
    by_length = sorted(texts, key=len)
    middles = (
        len(texts) * (2 * number + 1) // (2 * _TUNING_GROUPS) for number in range(_TUNING_GROUPS)
    )
    starts = [max(0, middle - group // 2) for middle in middles]
    return [text for start in starts for text in by_length[start : start + group]]


def _warm_up_like_baselines(
    entrants: Sequence[Entrant],
    texts: Sequence[str],
    sample: Sequence[str],
    batch_sizes: Sequence[int],
    settings: Settings,
) -> None:
    """Let ours embed what baselines embed while their batch size is chosen, once a size."""
    for entrant in entrants:
        if entrant.ours:
            given = _tuning_texts(entrant, texts, sample, largest=max(batch_sizes))
            with open_workers([entrant], settings) as (worker,):
                for _ in batch_sizes:
                    worker.embed(given)


def _one_batch_a_group(texts: Sequence[str], size: int) -> list[str]:
    group = -(-len(texts) // _TUNING_GROUPS)
    return [
        text for at in range(0, len(texts), group) for text in texts[at : at + min(size, group)]
    ]


def _best(entrant: Entrant, texts: Sequence[str], sizes: Sequence[int], settings: Settings) -> int:
    """Choose the batch size that a baseline is fastest with, from the smallest on."""
    if len(sizes) == 1:
        return sizes[0]

    def seconds(worker: LazyWorker, size: int) -> float:
        settings.step(f"{entrant.label}: batches of {size}")
        # The first ones find a cold process, and on a GPU libraries that choose how to go about
        # each new shape: there a batch of each length is enough.
        if settings.pool is not None:
            worker.embed(_one_batch_a_group(texts, size), batch_size=size)
        elif size == min(sizes):
            worker.embed(texts, batch_size=size)
        return worker.embed(texts, batch_size=size)[0]

    taken: dict[int, float] = {}
    with open_workers([entrant], settings, warm_up=texts[:2]) as (worker,):
        for size in sorted(sizes):
            key = f"tune/{entrant.label}/{size}"
            taken[size] = settings.journal.get(key, partial(seconds, worker, size))
            if taken[size] > _HOPELESS * min(taken.values()):
                break
    return min(taken, key=taken.__getitem__)


def measure_reference(
    reference: SideSpec, texts: Sequence[str], settings: Settings
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Let the reference embed texts.

    Args:
        reference: How to open it.
        texts: The texts.
        settings: What all measures share.

    Returns:
        Its name, its precision and what is in force, and the vectors that all are held against.
        Shape: ``(len(texts), dim)``.
    """
    entrant = Entrant(label="the reference", spec=reference, in_full=False)

    with open_workers([entrant], settings) as (worker,):

        def vectors() -> dict[str, Any]:
            settings.step(f"the reference's vectors of {len(texts)} texts")
            rows = worker.embed(texts)[1].astype("<f4")
            return {"shape": rows.shape, "float32": base64.b64encode(rows.tobytes()).decode()}

        kept = settings.journal.get("reference", vectors)
        rows = np.frombuffer(base64.b64decode(kept["float32"]), "<f4")
        return worker.row(), rows.reshape(kept["shape"]).astype(np.float32)
