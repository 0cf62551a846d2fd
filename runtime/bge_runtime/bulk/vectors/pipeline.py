"""Windows of texts to vectors, without end: reading, computing and writing overlap.

::

    one thread      reads, chunks and tokenizes a window, and plans its batches
    engine threads  each takes the next batch, of this window or of the next one
    one thread      writes windows in their order

A batch holds only texts of one window, and its size does not depend on the number of threads. The
engines compute the same bits with any number of threads. So the result of a window depends on its
texts alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from bge_runtime.bulk.rows import Window
from bge_runtime.bulk.vectors.channel import AbortedError, Channel
from bge_runtime.bulk.vectors.encoder import PreparedWindow, TextEncoder
from bge_runtime.encoding import Batch, halve_batch, share_batches
from bge_runtime.engines import Engine
from bge_runtime.errors import NotFiniteError
from bge_runtime.system import BackgroundTask

_WINDOWS_AHEAD = 2
"""Windows that are tokenized before an engine needs them."""

_STREAMS_A_WINDOW = 8
"""Engines' threads for which one further window may be unfinished."""

_POLL_S = 0.2
"""How often the calling thread looks for signals."""


class _Item(NamedTuple):
    window: PreparedWindow
    batch: Batch


class Pipeline:
    """One run of windows through a model."""

    def __init__(
        self,
        windows: Generator[Window],
        encoder: TextEncoder,
        write: Callable[[PreparedWindow], object],
        *,
        finish: Callable[[], object] = lambda: None,
        on_stop: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare a run.

        Args:
            windows: Windows of texts; read in a thread.
            encoder: Computes them.
            write: Receives each window once its texts are computed, in order, in a thread.
            finish: Called in that thread after the last window.
            on_stop: Called once a stage fails or the run is interrupted, so that others end soon.
        """
        self._windows, self._encoder, self._write = windows, encoder, write
        self._finish, self._on_stop = finish, on_stop
        self._prepared: Channel[PreparedWindow] = Channel(_WINDOWS_AHEAD)
        unfinished = _WINDOWS_AHEAD + len(encoder.engines) // _STREAMS_A_WINDOW
        # In the order of the input; the first one may still be computed.
        self._ordered: Channel[PreparedWindow] = Channel(unfinished)
        self._error: BaseException | None = None
        self._failing = threading.Lock()
        self._running = 3
        self._over = threading.Lock()

    def run(self) -> None:
        """Compute and write all windows.

        Raises:
            BaseException: The first error of any stage, once all threads have ended.
        """
        stages = {"bge-read": self._prepare, "bge-compute": self._compute, "bge-write": self._store}
        tasks = [
            BackgroundTask(partial(self._guard, stage), name=name) for name, stage in stages.items()
        ]
        self._over.acquire()
        with ExitStack() as stack:  # waits for all of them, even if one wait is interrupted
            for task in tasks:
                stack.callback(task.wait)
            try:
                for task in tasks:
                    task.start()
                # With a timeout, since only then a signal is handled while waiting.
                while not self._over.acquire(timeout=_POLL_S):
                    pass
            except BaseException as error:
                self._stop(error)
                raise
        if self._error is not None:
            raise self._error

    def _guard(self, stage: Callable[[], None]) -> None:
        try:
            stage()
        except AbortedError:
            pass
        except BaseException as error:  # noqa: BLE001  # raised by `run`
            self._stop(error)
        finally:
            with self._failing:
                self._running -= 1
                if not self._running:
                    self._over.release()

    def _stop(self, error: BaseException) -> None:
        with self._failing:
            self._error = self._error or error
        self._prepared.abort()
        self._ordered.abort()
        self._on_stop()

    def _prepare(self) -> None:
        with closing(self._windows):  # and the files that it reads, also after an error
            for window in self._windows:
                prepared = self._encoder.prepare(window)
                self._ordered.put(prepared)
                self._prepared.put(prepared)
        self._prepared.close()
        self._ordered.close()

    def _compute(self) -> None:
        items = (_Item(window, batch) for window in self._prepared for batch in window.batches)
        share_batches(self._encoder.engines, items, self._compute_batch, endless=True)

    def _compute_batch(self, engine: Engine, item: _Item) -> None:
        try:
            self._encode(engine, item.window, item.batch)
        except BaseException as error:
            # At once: other threads may wait for what this one will not finish.
            self._stop(error)
            raise

    def _encode(self, engine: Engine, window: PreparedWindow, batch: Batch) -> None:
        try:
            self._encoder.compute(engine, window, batch)
        except NotFiniteError as error:
            # The error of a batch says which text it was only if there is no other one.
            if len(batch.rows) > 1:
                for half in halve_batch(batch):
                    self._encode(engine, window, half)
                return
            window.reject(int(batch.rows[0]), str(error))
        window.finish(len(batch.rows))

    def _store(self) -> None:
        for window in self._ordered:
            while not window.finished.wait(_POLL_S):
                if self._error is not None:
                    raise AbortedError
            self._write(window)
        self._finish()
