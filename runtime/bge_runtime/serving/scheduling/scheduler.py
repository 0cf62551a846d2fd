"""Decide which texts an engine computes next.

Threads, one for each batch that can be in progress on a device, take the next batch themselves: no
engine is idle while texts wait. There are two lanes, for queries and for bulk work. Queries go
first, and bulk work is computed in slices no longer than a query may wait for. So that queries
cannot stop bulk work, it gets at least one slice every `_AGING_S`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bge_runtime.encoding import MAX_PADDED_TOKENS
from bge_runtime.serving.scheduling.execution import EngineGroup
from bge_runtime.serving.scheduling.lanes import BatchSize, Entry, Lane
from bge_runtime.serving.scheduling.work import Work, WorkCancelledError

logger = logging.getLogger("bge_runtime.serving")

_AGING_S = 0.5
"""Bulk work gets at least one slice in this time, whatever the queries. With slices of 50 ms on two
processors that is a twentieth of the machine."""

_PARALLEL_TOKENS = 256
"""Tokens that must wait before they are split into parallel batches: fewer are computed sooner with
all threads on one batch."""

_MIN_SLICE_TOKENS = 64
"""Tokens of the shortest slice: of fewer, starting a batch takes longer than computing it."""

_AFTER_FAILURE_S = 0.1
"""Seconds that a thread of the scheduler pauses after a bug, which may show again at once."""

_JOIN_S = 1.0
"""Seconds for batches to end after `Scheduler.close`."""

OnBatch = Callable[[EngineGroup, int, int, float], object]
"""Receives the engines, texts, tokens and seconds of a batch."""


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """How to share the engines.

    Attributes:
        slice_s: Seconds that a slice of bulk work may take.
        stalled_s: Seconds after which a batch counts as stalled, and its requests fail.
        max_rows: Maximum texts of a batch.
    """

    slice_s: float = 0.05
    stalled_s: float = 120.0
    max_rows: int = 256


@dataclass(eq=False)
class _Run:
    """A batch in progress."""

    works: list[Work]
    engines: EngineGroup
    started_s: float
    reported: bool = False


@dataclass(eq=False)
class _Device:
    """A device and the batches in progress there.

    Attributes:
        parallel: Whether further batches may be started while some are in progress.
        bulk_s: When bulk work last got a slice here, or last did not wait.
    """

    name: str
    slots: int
    parallel: bool = False
    running: list[_Run] = field(default_factory=list)
    bulk_s: float = 0.0


class StalledError(Exception):
    """An engine has not answered in time."""


class Scheduler:
    """The queue of a process, and the threads that work on it."""

    def __init__(
        self,
        groups: Sequence[EngineGroup],
        options: SchedulerOptions = SchedulerOptions(),  # frozen
        *,
        on_batch: OnBatch = lambda *_: None,
    ) -> None:
        """Start the threads.

        Args:
            groups: The engines of all models.
            options: How to share them.
            on_batch: Is told of each batch that is done.
        """
        self.options = options
        self._on_batch = on_batch
        self._changed = threading.Condition()
        self._lanes = {False: Lane(), True: Lane()}
        self._closing = False
        slots: dict[str, int] = {}
        for group in groups:
            for name, engines in group.devices.items():
                slots[name] = max(slots.get(name, 1), engines.slots)
        self._devices = [_Device(name, count) for name, count in slots.items()]
        self._threads = [
            threading.Thread(target=self._work, args=(device,), name="bge-engine", daemon=True)
            for device in self._devices
            for _ in range(device.slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work) -> None:
        """Queue the texts of a request. Its ``on_done`` is called when they are computed."""
        with self._changed:
            if self._closing:
                raise WorkCancelledError("the scheduler is closed")
            self._lanes[work.bulk].add(work)
            # One thread for a query: a second one would find nothing to do.
            alone = len(work.tokens) == 1 and len(self._devices) == 1
            self._changed.notify(1 if alone else len(self._threads))

    def cancel(self, work: Work, error: Exception | None = None) -> None:
        """Drop the texts of a request that are in no batch yet, and end it with an error."""
        with self._changed:
            self._lanes[work.bulk].remove(work)
        work.end(error or WorkCancelledError("cancelled"))

    def queued_tokens(self, *, bulk: bool) -> int:
        """Return the tokens that wait in a lane."""
        return self._lanes[bulk].tokens

    @property
    def queued_requests(self) -> int:
        """Requests with texts that wait."""
        with self._changed:
            return sum(len(lane.works) for lane in self._lanes.values())

    @property
    def running_batches(self) -> int:
        """Batches in progress."""
        return sum(len(device.running) for device in self._devices)

    def computes(self, group: EngineGroup) -> bool:
        """Return whether a batch is in progress, of any model, on the devices of this one."""
        return any(device.running for device in self._devices if device.name in group.devices)

    def stalled(self, group: EngineGroup | None = None) -> float | None:
        """Return for how many seconds an engine has not answered; None if all answer.

        Args:
            group: Look at the engines of this model only, and at the devices that it waits for.
        """
        now_s, longest = time.monotonic(), 0.0
        for device in self._devices:
            if group is not None and device.name not in group.devices:
                continue
            for run in list(device.running):
                longest = max(longest, now_s - run.started_s)
        return longest if longest >= self.options.stalled_s else None

    def fail_stalled(self) -> None:
        """Fail the requests of batches that have stalled. Call it about once a second."""
        now_s = time.monotonic()
        for device in self._devices:
            for run in list(device.running):
                if not run.reported and now_s - run.started_s >= self.options.stalled_s:
                    run.reported = True
                    for work in run.works:
                        self.cancel(
                            work,
                            StalledError(
                                f"the engine of {run.engines.name} has not answered for "
                                f"{now_s - run.started_s:.0f} s"
                            ),
                        )

    def close(self) -> None:
        """End all requests that wait, and the threads once their batches are done."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            waiting = [work for lane in self._lanes.values() for work in lane.works]
        for work in waiting:
            self.cancel(work)
        until_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, until_s - time.monotonic()))

    @property
    def is_computing(self) -> bool:
        """Whether a thread is still in an engine; after `close`, one that does not answer."""
        return any(thread.is_alive() for thread in self._threads)

    def _start_over(self, error: Exception) -> None:
        """End all requests that wait, and forget the lanes: they may be what is broken."""
        with self._changed:
            lanes, self._lanes = self._lanes, {False: Lane(), True: Lane()}
            lost = [work for lane in lanes.values() for work in lane.unanswered]
        for work in lost:
            _end(work, error)

    def _work(self, device: _Device) -> None:
        while True:
            try:
                if not self._work_once(device):
                    return
            except Exception as error:  # a thread that ended would leave requests without answer
                logger.exception("the scheduler failed")
                self._start_over(error)
                time.sleep(_AFTER_FAILURE_S)

    def _work_once(self, device: _Device) -> bool:
        """Wait for a batch and run it; return whether the thread is to go on."""
        with self._changed:
            while (taken := self._take(device)) is None:
                if self._closing:
                    return False
                self._changed.wait()
            run, entries, parallel = taken
            device.running.append(run)
        try:
            run.engines.run(device.name, parallel=parallel, entries=entries)
        except Exception as error:  # of a bug, which must leave no request without an answer
            logger.exception("a batch failed")
            for work in run.works:
                _end(work, error)
        finally:
            tokens = sum(entry.length for entry in entries)
            took_s = time.monotonic() - run.started_s
            with self._changed:
                device.running.remove(run)
                if not parallel:  # the others waited for all of the device
                    self._changed.notify(device.slots)
        try:
            self._on_batch(run.engines, len(entries), tokens, took_s)
        except Exception:
            logger.exception("a batch was not counted")
        return True

    def _take(self, device: _Device) -> tuple[_Run, list[Entry], bool] | None:
        """Take the next batch for a device; None if there is none that may start now."""
        if device.running and not device.parallel:
            return None
        now_s = time.monotonic()
        while (found := self._next(device, now_s)) is not None:
            lane, leader = found
            if _is_over(leader, lane, now_s):
                continue
            engines = leader.key.engines
            if not device.running:
                device.parallel = self._fills_slots(engines, device, lane)
            entries = [
                entry
                for entry in lane.take(leader, self._size(engines, device, lane))
                if not _is_over(entry.work, lane, now_s)
            ]
            if lane is self._lanes[True] or not self._lanes[True].tokens:
                device.bulk_s = now_s
            if entries:
                works = list(dict.fromkeys(entry.work for entry in entries))
                return _Run(works, engines, now_s), entries, device.parallel
        return None

    def _next(self, device: _Device, now_s: float) -> tuple[Lane, Work] | None:
        """Return the lane and the request whose turn it is."""
        queries, bulk = self._lanes[False], self._lanes[True]
        aged = bulk.tokens and now_s - device.bulk_s >= _AGING_S
        for lane in (bulk, queries) if aged else (queries, bulk):
            if lane.tokens:
                leader = lane.oldest(lambda work: device.name in work.key.engines.devices)
                if leader is not None:
                    return lane, leader
        return None

    def _fills_slots(self, engines: EngineGroup, device: _Device, lane: Lane) -> bool:
        """Return whether so much waits that parallel batches are faster than one on all threads."""
        found = engines.devices[device.name]
        if found.parallel is None:
            return found.single.batches.concurrent_runs > 1
        return lane.tokens >= _PARALLEL_TOKENS and len(lane) > 1

    def _size(self, engines: EngineGroup, device: _Device, lane: Lane) -> BatchSize:
        """Return the limits of the next batch."""
        found = engines.devices[device.name]
        engine = found.parallel if device.parallel and found.parallel else found.single
        tokens, free = engine.batches.tokens, 1
        if device.parallel:
            free = max(1, device.slots - len(device.running))
        if free > 1:
            # What waits is shared by the slots that are free, with room for one text more.
            texts = len(lane)
            tokens = min(tokens, math.ceil(lane.tokens / free) + lane.tokens // texts)
        if lane is self._lanes[True] and engines.token_s:
            token_s = engines.token_s if device.parallel else engines.token_s / found.slots
            slice_tokens = int(self.options.slice_s / token_s)
            tokens = min(tokens, max(slice_tokens, _MIN_SLICE_TOKENS))
        return BatchSize(
            tokens=tokens,
            rows=self.options.max_rows,
            padding=engine.batches.overhead_tokens,
            longest_padded=MAX_PADDED_TOKENS,
        )


def _is_over(work: Work, lane: Lane, now_s: float) -> bool:
    """Return whether nobody waits for a request any more; one past its deadline is ended."""
    if work.is_late(now_s):
        work.end(TimeoutError("the deadline passed while it waited"))
    if work.is_over:
        lane.remove(work)
    return work.is_over


def _end(work: Work, error: Exception) -> None:
    try:
        work.end(error)
    except Exception:
        logger.exception("a request could not be told that it failed")
