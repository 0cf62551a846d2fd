"""Run batches on the engines of one model, and keep count of how fast that goes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import Batch, BatchCall, compute_batch
from bge_runtime.engines import Engine, pad_batch
from bge_runtime.errors import BgeError, InferenceError, NotFiniteError, OutOfMemoryError
from bge_runtime.models import ModelParts

if TYPE_CHECKING:
    from bge_runtime.serving.scheduling.lanes import Entry
    from bge_runtime.serving.scheduling.work import Work

logger = logging.getLogger("bge_runtime.serving")

_SMOOTHING = 0.1
"""Weight of the newest batch in the measured speed: the last ten batches or so count."""


class DeviceEngines(NamedTuple):
    """The engines of a model on one device.

    Attributes:
        single: Computes one batch with all of the device.
        parallel: Computes several batches at once, each with a share of the device; None if the
            device does one batch at a time.
    """

    single: Engine
    parallel: Engine | None

    @property
    def slots(self) -> int:
        """Batches that can be in progress at once."""
        return (self.parallel or self.single).batches.concurrent_runs


class EngineGroup:
    """The engines of one model on its devices.

    Attributes:
        name: Name under which the model is served, for messages.
        devices: Its engines by device.
        token_s: Measured seconds for a token of a batch in one slot; 0 before the first batch.
        failed: Why the engines last failed; None once a batch has succeeded again.
        answered_s: When a batch last succeeded.
    """

    def __init__(self, name: str, parts: ModelParts, *, parallel: bool = True) -> None:
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
        self._reopened = False
        self.devices = self._open()
        self.token_s = 0.0
        self.failed: str | None = None
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
        """Measured speed with all slots in use; 0 before the first batch."""
        slots = sum(device.slots for device in self.devices.values())
        return slots / self.token_s if self.token_s else 0.0

    def run(self, device: str, *, parallel: bool, entries: Sequence[Entry]) -> None:
        """Run a batch, and give each request its outputs or the error.

        If an engine fails, all engines of the model are opened again and the batch is run once
        more, unless that has been done since the last batch that succeeded. If it fails even so,
        each request's texts are run alone: what one request has sent fails no other.

        Args:
            device: Where to run it.
            parallel: Whether other batches may be in progress there.
            entries: The texts, all of one key.
        """
        left = list(entries)
        try:
            self._compute_or_reopen(device, parallel, left)
        except Exception as error:  # noqa: BLE001  # a thread that ends would compute nothing more
            works = list(dict.fromkeys(entry.work for entry in left))
            if len(works) == 1 or not isinstance(error, InferenceError):
                self._fail(works, error)
                return
            for work in (each for each in works if not each.is_over):
                own = [entry for entry in left if entry.work is work]
                try:
                    self._compute(self.devices, device, parallel, own)
                except Exception as reason:  # noqa: BLE001  # the same
                    self._fail([work], reason)

    def _fail(self, works: Sequence[Work], error: Exception) -> None:
        if not isinstance(error, NotFiniteError):  # which says nothing of the engine
            self.failed = str(error)
        logger.error("%s: a batch of %d requests failed: %s", self.name, len(works), error)
        for work in works:
            work.end(error)

    def _compute_or_reopen(self, device: str, parallel: bool, left: list[Entry]) -> None:
        devices = self.devices
        try:
            self._compute(devices, device, parallel, left)
        except (NotFiniteError, OutOfMemoryError):
            raise
        except InferenceError as error:
            if not self._reopen(devices, error):
                raise
            self._compute(self.devices, device, parallel, left)

    def _compute(
        self,
        devices: Mapping[str, DeviceEngines],
        device: str,
        parallel: bool,
        left: list[Entry],
    ) -> None:
        """Run a batch, and remove from ``left`` what has its outputs, also if it then fails."""
        entries = list(left)
        key = entries[0].work.key
        single, streams = devices[device]
        engine = streams if parallel and streams is not None else single
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
        compute_batch(engine, Batch(np.arange(len(entries)), ids, mask, prefix), call=call)
        self._note_success(device, parallel, ids.size, time.monotonic() - started_s)

    def _note_success(self, device: str, parallel: bool, tokens: int, took_s: float) -> None:
        self.answered_s = time.monotonic()
        self.failed, self._reopened = None, False
        # With all threads on one batch, a slot is a share of them.
        share = 1 if parallel else self.devices[device].slots
        if tokens * share < 64:
            return  # of so few tokens, starting a batch takes longer than they do
        token_s = took_s * share / tokens
        self.token_s = (
            self.token_s + _SMOOTHING * (token_s - self.token_s) if self.token_s else token_s
        )

    def _reopen(self, failed: Mapping[str, DeviceEngines], error: InferenceError) -> bool:
        """Open all engines again, and return whether that was done since these have failed."""
        with self._opening:
            if self.devices is not failed:  # by another thread in the meantime
                return True
            if self._reopened:
                return False
            self._reopened = True
            logger.error("%s: opening the engines again after: %s", self.name, error)
            try:
                self._parts.engines.reopen()
                self.devices = self._open()
            except (BgeError, OSError) as reason:
                logger.error(  # noqa: TRY400
                    "%s: the engines cannot be opened again: %s", self.name, reason
                )
                return False
        return True


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
