"""What the tables are made of: each measure asks all entrants in turn, round by round.

Everything goes through a journal, so that a run can be stopped and resumed. Where only a
sample of the texts is timed of a slow entrant, ours is timed on that sample as well.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bge_bench.driver import Worker
from bge_bench.entrants import Entrant
from bge_bench.errors import BenchError
from bge_bench.journal import Journal
from bge_bench.sides import SideSpec
from bge_bench.speed import QUERY
from bge_runtime.parity import TOLERANCES, compare

Step = Callable[[str], object]

_SETTLE_S = 0.3
"""Pause before an entrant's turn: another's idle threads spin for some milliseconds."""

_TUNING_TEXTS = 32
"""Texts on which a baseline's batch size is chosen, and neighbours in length for one that is
timed on all texts: there a batch of neighbours is hardly padded, as in a sample it is."""

_WARM_UP_TEXTS = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all measures share.

    Attributes:
        journal: Where measurements are kept.
        step: Told what comes next.
        rounds: How often everything is measured.
        timeout_s: Longest wait for any one answer.
    """

    journal: Journal
    step: Step
    rounds: int
    timeout_s: float


class Side:
    """An entrant's process, started when it is first asked for something."""

    def __init__(self, entrant: Entrant, spec: SideSpec, settings: Settings, folder: Path) -> None:
        """Take an entrant; ``spec`` may have another batch size than its own."""
        self.entrant = entrant
        self.spec = spec
        self._settings = settings
        self._folder = folder
        self._worker: Worker | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.kill()

    def open(self, warm_up: Sequence[str]) -> Worker:
        """Start the process, and embed a few texts that do not count."""
        if self._worker is None:
            self._settings.step(f"{self.entrant.label}: start and warm up")
            self._worker = Worker(self.spec, query=QUERY, timeout_s=self._settings.timeout_s)
            if warm_up:
                self.embed(warm_up)
        return self._worker

    def ready(self, warm_up: Sequence[str] = ()) -> dict[str, Any]:
        """Tell name, precision and what is in force."""
        said = self.open(warm_up).ready
        if said["precision"] not in TOLERANCES:
            raise BenchError(
                f"{said['name']} computes in {said['precision']} on this machine, and there are "
                f"tolerances for {', '.join(TOLERANCES)} only"
            )
        return {name: said[name] for name in ("name", "precision", "in_force")}

    def embed(self, texts: Sequence[str]) -> tuple[float, NDArray[np.float32]]:
        """Give the seconds of one ``encode``, and the vectors."""
        worker = self.open(())
        file, vectors = self._folder / "texts.json", self._folder / "vectors"
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        time.sleep(_SETTLE_S)
        answer = worker.ask("corpus", texts=str(file), vectors=str(vectors))
        rows = np.fromfile(vectors, answer["dtype"]).reshape(answer["shape"])
        return answer["seconds"], rows

    def query_ms(self, texts: Sequence[str], *, calls: int, budget_s: float) -> list[float]:
        """Give the milliseconds of each call."""
        time.sleep(_SETTLE_S)
        worker = self.open(())
        answer = worker.ask("query", query=list(texts), calls=calls, budget_s=budget_s)
        return list(answer["ms"])

    def memory(self) -> dict[str, int]:
        """Tell the bytes that the process holds, and its peak."""
        return self.open(()).ask("memory")


@contextmanager
def _sides(
    entrants: Sequence[Entrant], settings: Settings, specs: Sequence[SideSpec] | None = None
) -> Iterator[list[Side]]:
    specs = specs or [entrant.spec for entrant in entrants]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-bench-")))
        yield [
            stack.enter_context(Side(entrant, spec, settings, folder))
            for entrant, spec in zip(entrants, specs, strict=True)
        ]


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
    journal = settings.journal
    specs = [
        entrant.spec
        if entrant.ours
        else replace(
            entrant.spec,
            batch_size=_best(entrant, _tuning_texts(entrant, texts, sample), batch_sizes, settings),
        )
        for entrant in entrants
    ]
    warm_up = sample[:_WARM_UP_TEXTS]
    expected = _reference_vectors(reference, sample, settings)
    rows = []
    with _sides(entrants, settings, specs) as sides:
        for number in range(settings.rounds):
            for name, corpus in (("sample", sample), ("full", texts)):
                for side in sides:
                    if name == "full" and not side.entrant.in_full:
                        continue
                    label = side.entrant.label
                    journal.get(f"ready/{label}", partial(side.ready, warm_up))

                    def timed(side: Side = side, corpus: Sequence[str] = corpus) -> Any:
                        side.open(warm_up)
                        settings.step(f"{side.entrant.label}: {len(corpus)} texts")
                        seconds, vectors = side.embed(corpus)
                        measured: dict[str, Any] = {"seconds": seconds, **side.memory()}
                        if corpus is sample:
                            measured["parity"] = asdict(compare(vectors, expected))
                        return measured

                    journal.get(f"{name}/{label}/{number}", timed)
        for side in sides:
            label = side.entrant.label
            measured = {
                name: [
                    journal.get(f"{name}/{label}/{number}", dict)
                    for number in range(settings.rounds)
                ]
                for name in ("sample", *(["full"] * side.entrant.in_full))
            }
            entries = [entry for runs in measured.values() for entry in runs]
            rows.append(
                {
                    "label": label,
                    "ours": side.entrant.ours,
                    **journal.get(f"ready/{label}", dict),
                    "batch_size": side.spec.batch_size,
                    "sample_s": [entry["seconds"] for entry in measured["sample"]],
                    "full_s": [entry["seconds"] for entry in measured.get("full", [])],
                    "peak_memory_bytes": max(entry["peak_bytes"] for entry in entries),
                    "parity": measured["sample"][-1]["parity"],
                }
            )
    return rows


def measure_latency(
    entrants: Sequence[Entrant],
    points: Sequence[tuple[str, Sequence[str]]],
    *,
    calls: int,
    budget_s: float,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time calls of ``encode`` with few texts.

    Args:
        entrants: Who is timed.
        points: A name and the texts of one call, for each kind of call.
        calls: Calls of each kind in a round.
        budget_s: Where they take longer than that together, fewer.
        settings: What all measures share.

    Returns:
        One document an entrant.
    """
    rows = []
    with _sides(entrants, settings) as sides:
        for number in range(settings.rounds):
            for name, texts in points:
                for side in sides:
                    ready = f"ready/{side.entrant.label}"
                    settings.journal.get(ready, side.ready)

                    def timed(side: Side = side, texts: Sequence[str] = texts) -> list[float]:
                        settings.step(f"{side.entrant.label}: {len(texts)} short text(s)")
                        side.query_ms(texts, calls=3, budget_s=budget_s / 4)
                        return side.query_ms(texts, calls=calls, budget_s=budget_s)

                    settings.journal.get(f"{name}/{side.entrant.label}/{number}", timed)
        for side in sides:
            label = side.entrant.label
            rows.append(
                {
                    "label": label,
                    "ours": side.entrant.ours,
                    **settings.journal.get(f"ready/{label}", dict),
                    "ms": {
                        name: [
                            settings.journal.get(f"{name}/{label}/{number}", list)
                            for number in range(settings.rounds)
                        ]
                        for name, _ in points
                    },
                }
            )
    return rows


def measure_cold_start(entrants: Sequence[Entrant], *, settings: Settings) -> list[dict[str, Any]]:
    """Time new processes, from before the import to the first vector and to the end.

    Returns:
        One document an entrant, with the peak of memory at its first vector.
    """

    def start(entrant: Entrant) -> dict[str, Any]:
        settings.step(f"{entrant.label}: cold start")
        time.sleep(_SETTLE_S)
        with Worker(entrant.spec, query=QUERY, timeout_s=settings.timeout_s) as worker:
            peak = worker.ask("memory")["peak_bytes"]
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
    rows = []
    with _sides(entrants, settings) as sides:
        for number in range(settings.rounds):
            for size in sizes:
                for side in sides:
                    ready = f"ready/{side.entrant.label}"
                    settings.journal.get(ready, side.ready)

                    def timed(side: Side = side, size: int = size) -> float:
                        side.open(texts[:_WARM_UP_TEXTS])
                        settings.step(f"{side.entrant.label}: {size} texts")
                        return side.embed(texts[:size])[0]

                    settings.journal.get(f"{size}/{side.entrant.label}/{number}", timed)
        for side in sides:
            label = side.entrant.label
            rows.append(
                {
                    "label": label,
                    "ours": side.entrant.ours,
                    **settings.journal.get(f"ready/{label}", dict),
                    "batch_size": side.spec.batch_size,
                    "seconds": {
                        str(size): [
                            settings.journal.get(f"{size}/{label}/{number}", float)
                            for number in range(settings.rounds)
                        ]
                        for size in sizes
                    },
                }
            )
    return rows


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
        One document an entrant, with bytes held before the first call and after each.
    """
    rows = []
    for entrant in entrants:

        def watch(entrant: Entrant = entrant) -> dict[str, Any]:
            with _sides([entrant], settings) as (side,):
                said = side.ready()
                held, texts = [side.memory()["held_bytes"]], 0
                for chunk in chunks():
                    settings.step(f"{entrant.label}: texts {texts} to {texts + len(chunk)}")
                    side.embed(chunk)
                    texts += len(chunk)
                    held.append(side.memory()["held_bytes"])
                peak = side.memory()["peak_bytes"]
            return {**said, "texts": texts, "held_bytes": held, "peak_memory_bytes": peak}

        measured = settings.journal.get(f"memory/{entrant.label}", watch)
        rows.append({"label": entrant.label, "ours": entrant.ours, **measured})
    return rows


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

    def seconds(size: int) -> float:
        spec = replace(entrant.spec, batch_size=size)
        with _sides([entrant], settings, [spec]) as (side,):
            side.open(texts[:2])
            settings.step(f"{entrant.label}: batches of {size}")
            return side.embed(texts)[0]

    taken = {
        size: settings.journal.get(f"tune/{entrant.label}/{size}", partial(seconds, size))
        for size in sizes
    }
    return min(taken, key=lambda size: float(taken[size]))


def _reference_vectors(
    reference: SideSpec, sample: Sequence[str], settings: Settings
) -> NDArray[np.float32]:
    entrant = Entrant(label="the reference", spec=reference, in_full=False)

    def vectors() -> list[list[float]]:
        with _sides([entrant], settings) as (side,):
            side.open(())
            settings.step(f"the reference's vectors of {len(sample)} texts")
            rows: list[list[float]] = side.embed(sample)[1].astype(float).tolist()
            return rows

    return np.array(settings.journal.get("reference", vectors), dtype=np.float32)
