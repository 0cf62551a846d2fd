"""Run batches on the engines of one model, and keep count of how fast that goes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import Batch, BatchCall, EngineSet, compute_batch
from bge_runtime.engines import Engine, pad_batch
from bge_runtime.errors import BgeError, InferenceError, NotFiniteError, OutOfMemoryError

if TYPE_CHECKING:
    from bge_runtime.serving.scheduling.lanes import Entry
    from bge_runtime.serving.scheduling.work import Work

logger = logging.getLogger("bge_runtime.serving")

_SMOOTHING = 0.1
"""Weight of the newest batch in the measured speed: the last ten batches or so count."""

_MEASURED_TOKENS = 64
"""Tokens of the smallest batch that counts: of fewer, starting one takes longer than they do."""

_REST_S = 5.0
"""Seconds for which a device that has failed is left alone, where another one can compute. The
device that fails soonest would otherwise take most of the batches."""

_REOPEN_S = 60.0
"""Seconds between two times that engines are opened again: a text that no engine can compute may
come again and again."""


@dataclass(eq=False)
class DeviceEngines:
    """The engines of a model on one device.

    Attributes:
        single: Computes one batch with all of the device.
        parallel: Computes several batches at once, each with a share of the device; None if the
            device does one batch at a time.
        token_s: Measured seconds for a token of a batch in one slot; 0 before the first batch.
        failed: Why a batch last failed here; None once one has succeeded again.
        rests_until_s: Until then, another device is to compute batches, if there is one.
    """

    single: Engine
    parallel: Engine | None
    token_s: float = 0.0
    failed: str | None = None
    rests_until_s: float = 0.0

    @property
    def slots(self) -> int:
        """Batches that can be in progress at once."""
        return (self.parallel or self.single).batches.concurrent_runs

    @property
    def tokens_per_s(self) -> float:
        """Measured speed with all slots in use; 0 before the first batch."""
        return self.slots / self.token_s if self.token_s else 0.0

    def measure(self, tokens: int, took_s: float, *, parallel: bool) -> None:
        """Take the time of a batch into account."""
        # With all threads on one batch, a slot is a share of them.
        share = 1 if parallel else self.slots
        if tokens * share < _MEASURED_TOKENS:
            return
        token_s = took_s * share / tokens
        smoothed = self.token_s + _SMOOTHING * (token_s - self.token_s)
        self.token_s = smoothed if self.token_s else token_s


class EngineParts(Protocol):
    """What is needed of a model's parts."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        ...

    @property
    def engines(self) -> EngineSet:
        """The engines."""
        ...

    @property
    def devices(self) -> Sequence[str]:
        """Devices that share the work."""
        ...


class EngineGroup:
    """The engines of one model on its devices.

    Attributes:
        name: Name under which the model is served, for messages.
        devices: Its engines by device.
        answered_s: When a batch last succeeded.
    """

    def __init__(self, name: str, parts: EngineParts, *, parallel: bool = True) -> None:
        """Open all engines.

        Args:
            name: Name under which the model is served.
            parts: The model's parts.
            parallel: Open engines for parallel batches on a CPU, too.

        Raises:
            BgeError: If one cannot be opened.
        """
        self.name = name
        self._parts, self._parallel = parts, parallel
        self._pad_token_id = parts.bundle.manifest.model.pad_token_id
        self._opening = threading.Lock()
        self._opened_s = -math.inf
        self.devices = self._open()
        self.answered_s = time.monotonic()

    def _open(self) -> dict[str, DeviceEngines]:
        engines = self._parts.engines
        return {
            device: DeviceEngines(
                engines.on_device(device), engines.streams_on(device) if self._parallel else None
            )
            for device in dict.fromkeys(self._parts.devices)
        }

    @property
    def tokens_per_s(self) -> float:
        """Measured speed with all slots of all devices in use; 0 before the first batch."""
        return sum(device.tokens_per_s for device in self.devices.values())

    @property
    def failed(self) -> str | None:
        """Why batches fail on all devices; None if one of them computes."""
        reasons = [device.failed for device in self.devices.values()]
        return None if None in reasons else reasons[0]

    def computes_on(self, device: str) -> bool:
        """Return whether a device is to compute batches of the model now."""
        found = self.devices.get(device)
        if found is None:
            return False
        rests = found.failed is not None and time.monotonic() < found.rests_until_s
        return not rests or all(each.failed is not None for each in self.devices.values())

    def warm_up(self, outputs: Sequence[str]) -> None:
        """Compute a batch on each engine, so that the first request finds all of them ready.

        Args:
            outputs: Names of all outputs of the graph that will be asked for.

        Raises:
            InferenceError: If an engine fails.
        """
        for found in self.devices.values():
            for engine in dict.fromkeys((found.single, found.parallel)):
                if engine is None:
                    continue
                # The first batch of a shape takes longer than those that follow.
                for _ in range(2):
                    ids = np.full((1, _MEASURED_TOKENS), self._pad_token_id, dtype=np.int64)
                    started_s = time.monotonic()
                    engine.run(ids, np.ones_like(ids), outputs)
                    took_s = time.monotonic() - started_s
                found.token_s = 0.0
                parallel = engine is found.parallel
                found.measure(ids.size, took_s, parallel=parallel)
        self.answered_s = time.monotonic()

    def run(self, device: str, *, parallel: bool, entries: Sequence[Entry]) -> None:
        """Run a batch, and give each request its outputs or the error.

        If that fails, each request's texts are run alone: what one request has sent fails no other.
        If all fail, they are run on another device; or, where there is none, the engines are opened
        again and they are run once more, at most once in `_REOPEN_S`.

        Args:
            device: Where to run it.
            parallel: Whether other batches may be in progress there.
            entries: The texts, all of one key.
        """
        left, opened = list(entries), self.devices
        try:
            self._compute(device, parallel, left)
            return
        except Exception as error:  # noqa: BLE001  # a thread that ends would compute nothing more
            works = list(dict.fromkeys(entry.work for entry in left))
            errors: dict[Work, Exception] = {works[0]: error}
        if len(works) > 1:
            errors = self._run_alone(device, parallel, left, works)
        crashed = [error for error in errors.values() if _is_crash(error)]
        if crashed and len(errors) == len(works):
            other = self._other_device(device)
            if other is not None or self._reopen(opened, crashed[0]):
                errors = self._run_alone(
                    other or device, parallel and other is None, left, list(errors)
                )
        for work, reason in errors.items():
            self._fail(device, work, reason)

    def _run_alone(
        self, device: str, parallel: bool, left: list[Entry], works: Sequence[Work]
    ) -> dict[Work, Exception]:
        """Run the texts of each request alone, and return the errors of those that fail."""
        errors: dict[Work, Exception] = {}
        for work in works:
            own = [entry for entry in left if entry.work is work]
            if work.is_over or not own:
                continue
            try:
                self._compute(device, parallel, own)
            except Exception as error:  # noqa: BLE001  # as in `run`
                errors[work] = error
        return errors

    def _other_device(self, device: str) -> str | None:
        """Return a device that computes, other than one that has failed; None if there is none."""
        others = (name for name in self.devices if name != device and self.computes_on(name))
        return next(others, None)

    def _fail(self, device: str, work: Work, error: Exception) -> None:
        logger.error("%s: a request failed on %s: %s", self.name, device, error)
        work.end(error)

    def _compute(self, device: str, parallel: bool, left: list[Entry]) -> None:
        """Run a batch, and remove from ``left`` what has its outputs, also if it then fails."""
        entries = list(left)
        key = entries[0].work.key
        found = self.devices[device]
        engine = found.parallel if parallel and found.parallel is not None else found.single
        tokens = [entry.work.tokens[entry.row] for entry in entries]
        expected = np.frombuffer(key.prefix, np.int64) if key.prefix else None
        prefix = self._parts.engines.prefix_cache.share([engine], tokens, expected)
        rest = tokens if prefix is None else [ids[prefix.length :] for ids in tokens]
        ids, mask = pad_batch(rest, pad_token_id=self._pad_token_id)

        def give(batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
            _distribute(entries, batch, outputs)
            if len(batch.rows) == len(entries):
                left.clear()
            else:  # one of the parts of a batch for which there was no memory
                given = {entries[row].number for row in batch.rows.tolist()}
                left[:] = [entry for entry in left if entry.number not in given]

        def describe(row: int) -> str:
            return f"input {entries[row].row}"

        call = BatchCall(key.outputs, describe, self._parts.bundle.path, give)
        started_s = time.monotonic()
        for work in {entry.work for entry in entries}:
            if work.started_s is None:
                work.started_s = started_s
        try:
            compute_batch(engine, Batch(np.arange(len(entries)), ids, mask, prefix), call=call)
        except Exception as error:
            if not isinstance(error, NotFiniteError):  # which says nothing of the engine
                found.failed = str(error)
            if _is_crash(error):
                found.rests_until_s = time.monotonic() + _REST_S
            raise
        self.answered_s, found.failed = time.monotonic(), None
        count = sum(entry.length for entry in entries)
        found.measure(count, time.monotonic() - started_s, parallel=parallel)

    def _reopen(self, failed: dict[str, DeviceEngines], error: Exception) -> bool:
        """Open all engines again, and return whether that was done since these have failed."""
        with self._opening:
            if self.devices is not failed:  # by another thread in the meantime
                return True
            if time.monotonic() - self._opened_s < _REOPEN_S:
                return False
            logger.error("%s: opening the engines again after: %s", self.name, error)
            try:
                self._parts.engines.reopen()
                opened = self._open()
            except (BgeError, OSError) as reason:
                self._opened_s = time.monotonic()
                logger.error(  # noqa: TRY400
                    "%s: the engines cannot be opened again: %s", self.name, reason
                )
                return False
            for name, engines in opened.items():
                engines.token_s = self.devices[name].token_s
            self.devices = opened
            self._opened_s = time.monotonic()
        return True


def _is_crash(error: Exception) -> bool:
    """Return whether an error says that an engine does not work, and not that a text does not."""
    return isinstance(error, InferenceError) and not isinstance(
        error, NotFiniteError | OutOfMemoryError
    )


def _distribute(entries: Sequence[Entry], batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
    """Give each request the rows of a batch that are its own."""
    places: dict[Work, list[int]] = {}
    for place, row in enumerate(batch.rows.tolist()):
        places.setdefault(entries[row].work, []).append(place)
    for work, own in places.items():
        rows = np.array([entries[batch.rows[place]].row for place in own])
        if len(places) == 1:
            work.add(batch._replace(rows=rows), outputs)
            continue
        at = slice(own[0], own[0] + 1) if len(own) == 1 else own
        part = Batch(rows, batch.input_ids[at], batch.attention_mask[at], batch.prefix)
        work.add(part, [output[at] for output in outputs])
