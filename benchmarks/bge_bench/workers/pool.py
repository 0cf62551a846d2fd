"""Processes of the candidates, started when they are first used."""

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
from bge_bench.systems.base import Item, SystemSpec
from bge_bench.systems.lineup import Candidate
from bge_bench.workers.driver import Worker
from bge_bench.workers.journal import Journal
from bge_runtime.bundle import TOLERANCES

Step = Callable[[str], object]

_SETTLE_S, _SETTLE_ON_GPU_S = 0.3, 0.05
"""Pause before a candidate's turn, because idle threads of the previous one spin for some
milliseconds. On a GPU they do not matter."""

_UNTUNED = 256
"""Batch size that a process of a pool is opened with; each call passes its own."""


class Pool:
    """Processes that stay open from one table to the next, for a run on a GPU.

    On a GPU a start takes longer than the measurement: importing PyTorch, copying the weights and
    compiling. The memory of such a process includes that of earlier tables. Use it in a ``with``
    statement.

    Attributes:
        rates: The machine's matrix rates, after they are measured.
    """

    def __init__(self) -> None:
        """Create a pool without processes."""
        self.rates: dict[str, float] = {}
        self._open: dict[SystemSpec, Worker] = {}
        self._failed: dict[SystemSpec, BenchError] = {}

    def start(self, specs: Sequence[SystemSpec], *, timeout_s: float) -> list[BenchError | None]:
        """Start the missing processes of several systems at the same time.

        Returns:
            For each system the error of its start, now or earlier; None if it runs.
        """
        keys = [_pooled(spec) for spec in specs]

        def try_one(key: SystemSpec) -> None:
            try:
                self._open[key] = Worker(key, timeout_s=timeout_s)
            except BenchError as error:
                self._failed[key] = error

        tried = {*self._open, *self._failed}
        missing = [key for key in dict.fromkeys(keys) if key not in tried]
        with ThreadPoolExecutor(max(1, len(missing))) as starting:
            list(starting.map(try_one, missing))
        return [self._failed.get(key) for key in keys]

    def worker(self, spec: SystemSpec, *, timeout_s: float) -> Worker:
        """Return the process of a system, and start it if necessary.

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


def _pooled(spec: SystemSpec) -> SystemSpec:
    return replace(spec, batch_size=_UNTUNED)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all measurements share.

    Attributes:
        journal: Journal that keeps the measurements.
        step: Called with a message before each step.
        rounds: Number of times that everything is measured.
        timeout_s: Longest wait for an answer.
        pool: Processes to use; None starts new ones for each table.
    """

    journal: Journal
    step: Step
    rounds: int
    timeout_s: float
    pool: Pool | None = None

    @property
    def settle_s(self) -> float:
        """Seconds to wait before a candidate's turn."""
        return _SETTLE_S if self.pool is None else _SETTLE_ON_GPU_S


def what_runs(worker: Worker) -> dict[str, Any]:
    """Return the name, precision and description that a system reports.

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


def start_cold(candidate: Candidate, settings: Settings) -> dict[str, Any]:
    """Start a new process of a candidate, and let it exit.

    Returns:
        Its report at the first vector, with the seconds of the whole process and its peak memory.

    Raises:
        BenchError: If it does not start, or exits with an error.
    """
    settings.step(f"{candidate.label}: cold start")
    time.sleep(settings.settle_s)
    with Worker(candidate.spec, timeout_s=settings.timeout_s) as worker:
        peak = worker.ask("state")["peak_bytes"]
        return {**worker.ready, "process_s": worker.finish(), "peak_memory_bytes": peak}


class LazyWorker:
    """A candidate's process, started at the first request."""

    def __init__(
        self,
        candidate: Candidate,
        spec: SystemSpec,
        settings: Settings,
        folder: Path,
        warm_up: Sequence[Item],
    ) -> None:
        """Create it without starting the process.

        Args:
            candidate: The candidate.
            spec: How to open it; its batch size may differ from the candidate's.
            settings: Settings of all measurements.
            folder: Folder for files with texts and vectors.
            warm_up: Texts to embed at the start, untimed.
        """
        self.candidate = candidate
        self.spec = spec
        self._settings = settings
        self._folder = folder
        self._warm_up = warm_up
        self._worker: Worker | None = None

    def _started(self) -> Worker:
        if self._worker is None:
            self._settings.step(f"{self.candidate.label}: start and warm up")
            pool, timeout_s = self._settings.pool, self._settings.timeout_s
            if pool is None:
                self._worker = Worker(self.spec, timeout_s=timeout_s)
            else:
                self._worker = pool.worker(self.spec, timeout_s=timeout_s)
            if self._warm_up:
                self.embed(self._warm_up)
        return self._worker

    def close(self) -> None:
        """End the process, unless it belongs to a pool."""
        if self._worker is not None and self._settings.pool is None:
            self._worker.kill()

    def row(self) -> dict[str, Any]:
        """Return the start of the candidate's row: label, name, precision and what is in force."""
        said = self._settings.journal.get(
            f"ready/{self.candidate.label}", lambda: what_runs(self._started())
        )
        return {"label": self.candidate.label, "ours": self.candidate.ours, **said}

    def embed(
        self, texts: Sequence[Item], *, batch_size: int | None = None
    ) -> tuple[float, NDArray[np.float32]]:
        """Return the seconds of one ``encode``, and the vectors."""
        worker = self._started()
        time.sleep(self._settings.settle_s)
        batch_size = batch_size or self.spec.batch_size
        return worker.embed(texts, self._folder, batch_size=batch_size)

    def query_ms(
        self, texts: Sequence[Item], *, calls: int, budget_s: float = math.inf
    ) -> list[float]:
        """Return the milliseconds of each call; calls stop when the budget is spent."""
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
        """Return the memory that the process holds, its peak, and what is in force."""
        return self._started().ask("state")


@contextmanager
def open_workers(
    candidates: Sequence[Candidate],
    settings: Settings,
    *,
    specs: Sequence[SystemSpec] | None = None,
    warm_up: Sequence[Item] = (),
) -> Iterator[list[LazyWorker]]:
    """Yield a process for each candidate, not started yet, and end them afterwards.

    Args:
        candidates: The candidates.
        settings: Settings of all measurements; processes of its pool stay open.
        specs: How to open each; by default as the candidate's spec says.
        warm_up: Texts that each embeds at its start, untimed.
    """
    specs = specs or [candidate.spec for candidate in candidates]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bge-bench-")))
        workers = [
            LazyWorker(candidate, spec, settings, folder, warm_up)
            for candidate, spec in zip(candidates, specs, strict=True)
        ]
        for worker in workers:
            stack.callback(worker.close)
        yield workers
