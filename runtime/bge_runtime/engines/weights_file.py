"""A file of weights, mapped into memory once for all models that read it."""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bge_runtime.system import BackgroundTask

_DROP_EVERY_S = 0.005
"""Seconds between two times that pages are dropped. Copied at 1 to 4 GB/s, 5 to 20 MB of them are
in memory at once."""

_KEEP_ROWS_S = 1.0
"""Seconds for which pages of tables are kept. The system maps 64 KB around each row that is read:
a table of 512 MB, as BGE-M3's, would soon be in memory as a whole. To map pages again takes some
3 us each, of 5,000 tokens a second of BGE-M3 at most 1.5 % of the time."""


class WeightsFile:
    """A file of weights, of which only what is being read takes memory.

    When a model first runs, OpenVINO copies its matrices into a layout of its own. From then on it
    reads only tables of embeddings from the file. Without `read_once`, all pages that were copied
    would stay in the memory of the process, as much again as the copy.

    Attributes:
        array: Its bytes. They exist for as long as this object.
    """

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            OSError: If it cannot be opened.
            ValueError: If it is empty.
        """
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.array = np.frombuffer(self._map, np.uint8)
        self._can_drop = hasattr(self._map, "madvise")  # Windows keeps pages
        self._dropped_s = time.monotonic()

    def drop_rows(self) -> None:
        """Drop the pages of tables that were read, if it is a second since that was last done."""
        if self._can_drop and time.monotonic() - self._dropped_s >= _KEEP_ROWS_S:
            self._drop()

    def _drop(self) -> None:
        self._dropped_s = time.monotonic()
        self._map.madvise(mmap.MADV_DONTNEED)

    @contextlib.contextmanager
    def read_once(self) -> Iterator[None]:
        """Drop pages again and again while a block reads them, and at its end.

        A page that is read later comes back from the system's cache of files.
        """
        if not self._can_drop:
            yield
            return
        reading, caller = [True], threading.get_ident()

        def drop() -> None:
            while reading and threading.get_ident() != caller:  # if no thread can be started
                self._drop()
                time.sleep(_DROP_EVERY_S)

        task = BackgroundTask(drop, name="bge-weights")
        try:
            task.start()
            yield
        finally:
            try:
                reading.clear()
            finally:  # also if an interrupt came first
                reading.clear()
                task.wait()
                self._drop()


_mapped: weakref.WeakValueDictionary[tuple[int, ...], WeightsFile] = weakref.WeakValueDictionary()


def map_weights(path: Path) -> WeightsFile:
    """Return a file of weights; the one that is mapped already, if the file is the same.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is empty.
    """
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    found = _mapped.get(key)
    # Without a lock, which a fork may copy while it is held: at worst, the file is mapped twice.
    return found if found is not None else _mapped.setdefault(key, WeightsFile(path))
