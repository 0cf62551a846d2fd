"""The processes of entrants: started when they are needed, kept for as long as they are wanted."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bge_bench.errors import BenchError
from bge_bench.systems.base import SideSpec
from bge_bench.systems.lineup import Entrant
from bge_bench.workers.driver import Worker
from bge_bench.workers.journal import Journal
from bge_runtime.bundle import TOLERANCES

Step = Callable[[str], object]

QUERY = "how long does glacier ice keep air"
"""What a process embeds first."""

_SETTLE_S, _SETTLE_ON_GPU_S = 0.3, 0.05
"""Pause before an entrant's turn: another's idle threads spin for some milliseconds. On a GPU they
are in nobody's way."""

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
        self._failed: dict[SideSpec, BenchError] = {}

    def start(self, specs: Sequence[SideSpec], *, timeout_s: float) -> list[BenchError | None]:
        """Start the processes of sides that are not there, all at once.

        Returns:
            For each side what kept it from starting, now or before; None if it is there.
        """
        keys = [_pooled(spec) for spec in specs]

        def try_one(key: SideSpec) -> None:
            try:
                self._open[key] = Worker(key, query=QUERY, timeout_s=timeout_s)
            except BenchError as error:
                self._failed[key] = error

        tried = {*self._open, *self._failed}
        missing = [key for key in dict.fromkeys(keys) if key not in tried]
        with ThreadPoolExecutor(max(1, len(missing))) as starting:
            list(starting.map(try_one, missing))
        return [self._failed.get(key) for key in keys]

    def worker(self, spec: SideSpec, *, timeout_s: float) -> Worker:
        """Give the process of a side, started if it is not there.

        Raises:
            BenchError: If it does not start.
        """
        (error,) = self.start([spec], timeout_s=timeout_s)
        if error is not None:
            raise error
        return self._open[_pooled(spec)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._open.values():
            worker.kill()


def _pooled(spec: SideSpec) -> SideSpec:
    return replace(spec, batch_size=_UNTUNED)


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


def start_cold(entrant: Entrant, settings: Settings) -> dict[str, Any]:
    """Start a new process of an entrant, and end it.

    Returns:
        What it said at its first vector, with the seconds of the whole process and its peak of
        memory.

    Raises:
        BenchError: If it does not start or end well.
    """
    settings.step(f"{entrant.label}: cold start")
    time.sleep(settings.settle_s)
    with Worker(entrant.spec, query=QUERY, timeout_s=settings.timeout_s) as worker:
        peak = worker.ask("state")["peak_bytes"]
        return {**worker.ready, "process_s": worker.finish(), "peak_memory_bytes": peak}


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
                self._worker = pool.worker(self.spec, timeout_s=timeout_s)
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

    def query_ms(
        self, texts: Sequence[str], *, calls: int, budget_s: float = math.inf
    ) -> list[float]:
        """Give the milliseconds of each call, of fewer where they take longer than a budget."""
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
def open_workers(
    entrants: Sequence[Entrant],
    settings: Settings,
    *,
    specs: Sequence[SideSpec] | None = None,
    warm_up: Sequence[str] = (),
) -> Iterator[list[LazyWorker]]:
    """Give the process of each entrant, none of them started, and end those that were in the end.

    Args:
        entrants: Whose processes.
        settings: What all measures share; those of its pool do not end.
        specs: How to open each, if not as the entrant says.
        warm_up: Texts that each embeds at its start, which do not count.
    """
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
