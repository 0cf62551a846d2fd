"""Decide which texts an engine computes next.

Threads, one for each batch that can be in progress on a device, take the next batch themselves: no
engine is idle while texts wait. There are two lanes, for queries and for bulk work. Queries go
first, and bulk work is computed in slices no longer than a query may wait for, one request after
the other in turn. So that queries cannot stop it, it gets `_BULK_SHARE` of the time in any case.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bge_runtime.encoding import MAX_PADDED_TOKENS, MAX_STREAM_TOKENS
from bge_runtime.serving.scheduling.execution import EngineGroup
from bge_runtime.serving.scheduling.lanes import BatchSize, Entry, Lane
from bge_runtime.serving.scheduling.work import Work, WorkCancelledError

logger = logging.getLogger("bge_runtime.serving")

_BULK_SHARE = 1 / 16
"""Share of the time that bulk work gets while it waits, however many queries come."""

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
    """A batch in progress.

    Attributes:
        parallel: Whether further batches may be started beside it.
        owed: Whether queries wait for it, since bulk work is to get its share.
        expected_s: Seconds that it takes by what was measured so far.
        reported: Whether its requests were told that it has stalled.
    """

    entries: list[Entry]
    engines: EngineGroup
    parallel: bool
    bulk: bool
    owed: bool
    expected_s: float
    started_s: float = field(default_factory=time.monotonic)
    reported: bool = False

    @property
    def is_long(self) -> bool:
        return any(entry.length > MAX_STREAM_TOKENS for entry in self.entries)

    @property
    def works(self) -> list[Work]:
        return list(dict.fromkeys(entry.work for entry in self.entries))


@dataclass(eq=False)
class _Device:
    """A device and the batches in progress there.

    Attributes:
        bulk_credit_s: Seconds that bulk work is still to get for the queries that went before it.
    """

    name: str
    slots: int
    running: list[_Run] = field(default_factory=list)
    bulk_credit_s: float = 0.0


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
            if len(work.tokens) == 1 and len(self._devices) == 1:
                self._changed.notify()  # a second thread would find nothing to do
            else:
                self._changed.notify_all()

    def cancel(self, work: Work, error: Exception | None = None) -> None:
        """Drop the texts of a request that are in no batch yet, and end it with an error."""
        with self._changed:
            self._lanes[work.bulk].remove(work)
        work.end(error or WorkCancelledError("cancelled"))

    def queued_tokens(self, *, bulk: bool) -> int:
        """Return the tokens that wait in a lane."""
        return self._lanes[bulk].tokens

    def queued_s(self, *, bulk: bool) -> float:
        """Return the seconds in which what waits in a lane is computed, by measured speeds."""
        return self._lanes[bulk].seconds

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

    def stalled(self, group: EngineGroup) -> float | None:
        """Return for how many seconds an engine has not answered; None if all answer.

        Args:
            group: Look at the devices of this model only, which it may have to wait for.
        """
        devices = [device for device in self._devices if device.name in group.devices]
        stalled = [since_s for device in devices for _, since_s in self._stalled(device)]
        return max(stalled, default=None)

    def fail_stalled(self) -> None:
        """Fail the requests of batches that have stalled. Call it about once a second."""
        for device in self._devices:
            for run, since_s in self._stalled(device):
                if run.reported:
                    continue
                run.reported = True
                reason = f"the engine of {run.engines.name} has not answered for {since_s:.0f} s"
                for work in run.works:
                    self.cancel(work, StalledError(reason))

    def _stalled(self, device: _Device) -> list[tuple[_Run, float]]:
        """Return the batches that take too long, and for how long they have been in progress."""
        now_s, running = time.monotonic(), list(device.running)
        ages = [(run, now_s - run.started_s) for run in running]
        return [
            (run, age_s) for run, age_s in ages if age_s >= self.options.stalled_s + run.expected_s
        ]

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
            while (run := self._take(device)) is None:
                if self._closing:
                    return False
                self._changed.wait()
            device.running.append(run)
        try:
            run.engines.run(device.name, parallel=run.parallel, entries=run.entries)
        except Exception as error:  # of a bug, which must leave no request without an answer
            logger.exception("a batch failed")
            for work in run.works:
                _end(work, error)
        finally:
            took_s = time.monotonic() - run.started_s
            with self._changed:
                device.running.remove(run)
                self._give_credit(device, run, took_s)
                if not run.parallel or not device.running or run.is_long:
                    self._changed.notify_all()  # others may have waited for all of the device
        try:
            tokens = sum(entry.length for entry in run.entries)
            self._on_batch(run.engines, len(run.entries), tokens, took_s)
        except Exception:
            logger.exception("a batch was not counted")
        return True

    def _give_credit(self, device: _Device, run: _Run, took_s: float) -> None:
        if not self._lanes[True].tokens:
            device.bulk_credit_s = 0.0
        elif run.owed:  # a text may take longer than a slice: then the next one is owed later
            device.bulk_credit_s -= took_s
        elif not run.bulk:
            most_s = device.slots * self.options.slice_s
            device.bulk_credit_s = min(most_s, device.bulk_credit_s + _BULK_SHARE * took_s)

    def _take(self, device: _Device) -> _Run | None:
        """Take the next batch for a device; None if there is none that may start now."""
        if any(not run.parallel for run in device.running):
            return None
        now_s = time.monotonic()
        while (found := self._next(device)) is not None:
            lane, leader, owed = found
            if _is_over(leader, lane, now_s):
                continue
            engines = leader.key.engines
            parallel = self._runs_parallel(engines, device, lane)
            if device.running and not parallel:
                return None  # it is next, once the device is free
            size = self._size(engines, device, lane, parallel=parallel)
            entries = [
                entry for entry in lane.take(leader, size) if not _is_over(entry.work, lane, now_s)
            ]
            bulk = lane is self._lanes[True]
            if bulk:
                lane.move_to_end(leader)
            if entries:
                tokens = sum(entry.length for entry in entries)
                expected_s = tokens * engines.devices[device.name].token_s
                return _Run(entries, engines, parallel, bulk, owed, expected_s)
        return None

    def _next(self, device: _Device) -> tuple[Lane, Work, bool] | None:
        """Return the lane and the request whose turn it is, and whether queries wait for it."""
        queries, bulk = self._lanes[False], self._lanes[True]
        # Beside each other, long texts would wait for each other in the engine, and not here.
        long = any(run.is_long for run in device.running)

        def accepts(work: Work) -> bool:
            engines = work.key.engines
            if not engines.computes_on(device.name):
                return False
            one_by_one = engines.devices[device.name].parallel is not None
            return not (long and one_by_one and work.longest > MAX_STREAM_TOKENS)

        owed = queries.tokens and bulk.tokens and device.bulk_credit_s >= self.options.slice_s
        for lane in (bulk, queries) if owed else (queries, bulk):
            if lane.tokens:
                leader = lane.oldest(accepts)
                if leader is not None:
                    return lane, leader, lane is bulk and bool(queries.tokens)
        return None

    def _runs_parallel(self, engines: EngineGroup, device: _Device, lane: Lane) -> bool:
        """Return whether the next batch leaves room for others beside it.

        So much may wait that parallel batches are faster than one on all threads, or others may be
        in progress.
        """
        found = engines.devices[device.name]
        if found.parallel is None:
            return found.single.batches.concurrent_runs > 1
        return bool(device.running) or (lane.tokens >= _PARALLEL_TOKENS and len(lane) > 1)

    def _size(
        self, engines: EngineGroup, device: _Device, lane: Lane, *, parallel: bool
    ) -> BatchSize:
        """Return the limits of the next batch."""
        found = engines.devices[device.name]
        engine, tokens = found.single, found.single.batches.tokens
        if parallel and found.parallel is not None:
            engine, tokens = found.parallel, found.parallel.batches.tokens
            free = device.slots - len(device.running)
            if free > 1:
                # What waits is shared by the slots that are free, with room for one text more.
                share = math.ceil(lane.tokens / free) + lane.tokens // len(lane)
                tokens = min(tokens, share)
        if lane is self._lanes[True] and found.token_s:
            token_s = found.token_s if parallel else found.token_s / found.slots
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
