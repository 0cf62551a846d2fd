"""What the tables are made of: each measure asks all entrants in turn, round by round.

Another one begins each round, since what runs first may find the machine in another state.
Everything goes through a journal, so that a run can be stopped and resumed. Where only a
sample of the texts is timed of a slow entrant, ours is timed on that sample as well.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_bench.driver import Worker
from bge_bench.entrants import Entrant
from bge_bench.errors import BenchError
from bge_bench.journal import Journal
from bge_bench.sides import SideSpec
from bge_bench.speed import QUERY, what_runs
from bge_runtime.parity import compare

Step = Callable[[str], object]
Work = TypeVar("Work")

_SETTLE_S, _SETTLE_ON_GPU_S = 0.3, 0.05
"""Pause before an entrant's turn: another's idle threads spin for some milliseconds. On a GPU they
are in nobody's way."""

_TUNING_TEXTS = 32
"""Texts on which a baseline's batch size is chosen, and neighbours in length for one that is
timed on all texts: there a batch of neighbours is hardly padded, as in a sample it is."""

_WARM_UP_TEXTS = 8

_UNTUNED = 256
"""Batch size that a process of a pool is opened with; each call says its own."""


class Pool:
    """Processes that stay open from one table to the next, for a run on a GPU.

    There a start takes longer than what is measured: PyTorch, the weights' way to the GPU,
    and of a compiled model the compiler. What a process holds in memory is then what all of
    its work so far has left there. Use it in a ``with`` statement.

    Attributes:
        rates: The machine's matrix rates, once they are measured.
    """

    def __init__(self) -> None:
        """Open none yet."""
        self.rates: dict[str, float] = {}
        self._open: dict[SideSpec, Worker] = {}

    def workers(self, specs: Sequence[SideSpec], *, timeout_s: float) -> list[Worker]:
        """Give the process of each side; those that are not there start all at once."""
        keys = [replace(spec, batch_size=_UNTUNED) for spec in specs]
        missing = [key for key in dict.fromkeys(keys) if key not in self._open]
        with ThreadPoolExecutor(max(1, len(missing))) as starting:
            begun = [
                (key, starting.submit(Worker, key, query=QUERY, timeout_s=timeout_s))
                for key in missing
            ]
            self._open |= {key: future.result() for key, future in begun}
        return [self._open[key] for key in keys]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._open.values():
            worker.kill()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all measures share.

    Attributes:
        journal: Where measurements are kept.
        step: Told what comes next.
        rounds: How often everything is measured.
        timeout_s: Longest wait for any one answer.
        pool: Processes to take; None starts new ones for each table.
    """

    journal: Journal
    step: Step
    rounds: int
    timeout_s: float
    pool: Pool | None = None

    @property
    def settle_s(self) -> float:
        """Seconds to wait before an entrant's turn."""
        return _SETTLE_S if self.pool is None else _SETTLE_ON_GPU_S


class LazyWorker:
    """An entrant's process, started when it is first asked for something."""

    def __init__(
        self,
        entrant: Entrant,
        spec: SideSpec,
        settings: Settings,
        folder: Path,
        warm_up: Sequence[str],
    ) -> None:
        """Take an entrant.

        Args:
            entrant: Whose process it is.
            spec: How to open it; may have another batch size than the entrant's own.
            settings: What all measures share.
            folder: Where texts and vectors are handed over.
            warm_up: Texts to embed at the start, which do not count.
        """
        self.entrant = entrant
        self.spec = spec
        self._settings = settings
        self._folder = folder
        self._warm_up = warm_up
        self._worker: Worker | None = None

    def _started(self) -> Worker:
        if self._worker is None:
            self._settings.step(f"{self.entrant.label}: start and warm up")
            pool, timeout_s = self._settings.pool, self._settings.timeout_s
            if pool is None:
                self._worker = Worker(self.spec, query=QUERY, timeout_s=timeout_s)
            else:
                (self._worker,) = pool.workers([self.spec], timeout_s=timeout_s)
            if self._warm_up:
                self.embed(self._warm_up)
        return self._worker

    def close(self) -> None:
        """End the process, if there is one of its own."""
        if self._worker is not None and self._settings.pool is None:
            self._worker.kill()

    def row(self) -> dict[str, Any]:
        """Begin the entrant's document: label, name, precision and what is in force."""
        said = self._settings.journal.get(
            f"ready/{self.entrant.label}", lambda: what_runs(self._started())
        )
        return {"label": self.entrant.label, "ours": self.entrant.ours, **said}

    def embed(
        self, texts: Sequence[str], *, batch_size: int | None = None
    ) -> tuple[float, NDArray[np.float32]]:
        """Give the seconds of one ``encode``, and the vectors."""
        worker = self._started()
        time.sleep(self._settings.settle_s)
        batch_size = batch_size or self.spec.batch_size
        return worker.embed(texts, self._folder, batch_size=batch_size)

    def query_ms(self, texts: Sequence[str], *, calls: int, budget_s: float) -> list[float]:
        """Give the milliseconds of each call."""
        worker = self._started()
        time.sleep(self._settings.settle_s)
        answer = worker.ask(
            "query",
            query=list(texts),
            calls=calls,
            budget_s=budget_s,
            batch_size=self.spec.batch_size,
        )
        return list(answer["ms"])

    def state(self) -> dict[str, Any]:
        """Tell the bytes that the process holds, its peak, and what is in force in it."""
        return self._started().ask("state")


@contextmanager
def _workers(
    entrants: Sequence[Entrant],
    settings: Settings,
    *,
    specs: Sequence[SideSpec] | None = None,
    warm_up: Sequence[str] = (),
) -> Iterator[list[LazyWorker]]:
    specs = specs or [entrant.spec for entrant in entrants]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-bench-")))
        workers = [
            LazyWorker(entrant, spec, settings, folder, warm_up)
            for entrant, spec in zip(entrants, specs, strict=True)
        ]
        for worker in workers:
            stack.callback(worker.close)
        yield workers


def _start_all(entrants: Sequence[Entrant], reference: SideSpec, settings: Settings) -> None:
    """Start the processes of a pool at once; without one each starts when it is needed."""
    if settings.pool is not None:
        settings.step("all processes: start")
        specs = [*(entrant.spec for entrant in entrants), reference]
        settings.pool.workers(specs, timeout_s=settings.timeout_s)


def _take_turns(
    workers: Sequence[LazyWorker],
    kinds: Mapping[str, Work],
    measure: Callable[[LazyWorker, Work], Any],
    settings: Settings,
    *,
    takes_part: Callable[[LazyWorker, str], bool] = lambda _worker, _kind: True,
) -> dict[str, dict[str, list[Any]]]:
    """Measure each kind of work with everyone, round by round.

    Returns:
        What was measured: by label and kind, one entry a round.
    """
    found: dict[str, dict[str, list[Any]]] = {worker.entrant.label: {} for worker in workers}
    for number in range(settings.rounds):
        first = number * len(workers) // settings.rounds
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
    _start_all(entrants, reference, settings)
    specs = [
        entrant.spec
        if entrant.ours
        else replace(
            entrant.spec,
            batch_size=_best(entrant, _tuning_texts(entrant, texts, sample), batch_sizes, settings),
        )
        for entrant in entrants
    ]
    expected = _reference_vectors(reference, sample, settings)

    def timed(worker: LazyWorker, corpus: Sequence[str]) -> dict[str, Any]:
        settings.step(f"{worker.entrant.label}: {len(corpus)} texts")
        seconds, vectors = worker.embed(corpus)
        measured: dict[str, Any] = {"seconds": seconds, **worker.state()}
        if corpus is sample:
            measured["parity"] = asdict(compare(vectors, expected))
        return measured

    with _workers(entrants, settings, specs=specs, warm_up=sample[:_WARM_UP_TEXTS]) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = _take_turns(
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

    _start_all(entrants, reference, settings)
    expected = _reference_vectors(
        reference, [text for _, texts in points for text in texts], settings
    )

    def parity(worker: LazyWorker) -> dict[str, Any]:
        settings.step(f"{worker.entrant.label}: the vectors")
        # By the calls that were timed: a few texts at once may go another way than one.
        vectors = np.concatenate([worker.embed(texts)[1] for _, texts in points])
        return asdict(compare(vectors, expected))

    with _workers(entrants, settings) as workers:
        rows = [worker.row() for worker in workers]
        found = _take_turns(workers, dict(points), timed, settings)
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

    def start(entrant: Entrant) -> dict[str, Any]:
        settings.step(f"{entrant.label}: cold start")
        time.sleep(settings.settle_s)
        with Worker(entrant.spec, query=QUERY, timeout_s=settings.timeout_s) as worker:
            peak = worker.ask("state")["peak_bytes"]
            return {**worker.ready, "process_s": worker.finish(), "peak_memory_bytes": peak}

    numbers = range(-1, settings.rounds)  # the first one reads files that the others find cached
    for number in numbers:
        for entrant in entrants:
            key = f"start/{entrant.label}/{number}"
            settings.journal.get(key, partial(start, entrant))
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
    with _workers(entrants, settings, warm_up=texts[:_WARM_UP_TEXTS]) as workers:
        rows = [worker.row() | {"batch_size": worker.spec.batch_size} for worker in workers]
        found = _take_turns(workers, corpora, timed, settings)
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
            with _workers([entrant], settings) as (worker,):
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


def _tuning_texts(entrant: Entrant, texts: Sequence[str], sample: Sequence[str]) -> list[str]:
    if not entrant.in_full:
        return list(sample[:: max(1, len(sample) // _TUNING_TEXTS)][:_TUNING_TEXTS])
    by_length = sorted(texts, key=len)
    starts = [max(0, len(texts) * eighth // 8 - _TUNING_TEXTS // 2) for eighth in (1, 3, 5, 7)]
    return [text for start in starts for text in by_length[start : start + _TUNING_TEXTS]]


def _best(entrant: Entrant, texts: Sequence[str], sizes: Sequence[int], settings: Settings) -> int:
    """Choose the batch size that a baseline is fastest with."""
    if len(sizes) == 1:
        return sizes[0]

    def seconds(worker: LazyWorker, size: int) -> float:
        settings.step(f"{entrant.label}: batches of {size}")
        if settings.pool is not None:  # a GPU's libraries choose how to go about a new shape
            worker.embed(texts, batch_size=size)
        return worker.embed(texts, batch_size=size)[0]

    with _workers([entrant], settings, warm_up=texts[:2]) as (worker,):
        taken = {
            size: settings.journal.get(
                f"tune/{entrant.label}/{size}", partial(seconds, worker, size)
            )
            for size in sorted(sizes)
        }
    return min(taken, key=lambda size: float(taken[size]))


def _reference_vectors(
    reference: SideSpec, sample: Sequence[str], settings: Settings
) -> NDArray[np.float32]:
    entrant = Entrant(label="the reference", spec=reference, in_full=False)

    def vectors() -> list[list[float]]:
        with _workers([entrant], settings) as (worker,):
            settings.step(f"the reference's vectors of {len(sample)} texts")
            rows: list[list[float]] = worker.embed(sample)[1].astype(float).tolist()
            return rows

    return np.array(settings.journal.get("reference", vectors), dtype=np.float32)
