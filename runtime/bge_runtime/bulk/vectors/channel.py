"""A bounded queue between two stages of a pipeline, which either side can end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T")


class AbortedError(Exception):
    """The pipeline has been stopped; whoever stopped it knows why."""


class Channel(Generic[_T]):
    """A bounded queue with an end.

    `queue.Queue` has no end before Python 3.13: a stage would wait for ever for one that failed.
    """

    def __init__(self, capacity: int) -> None:
        """Create an empty queue for ``capacity`` items."""
        self._items: deque[_T] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._closed = self._aborted = False

    def put(self, item: _T) -> None:
        """Add an item; wait while the queue is full.

        Raises:
            AbortedError: If the queue was aborted.
        """
        with self._changed:
            while len(self._items) >= self._capacity and not self._aborted:
                self._changed.wait()
            if self._aborted:
                raise AbortedError
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        """End the queue: readers get the items that are left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Stop both sides at once; items that are left are dropped."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_T]:
        """Yield items until the end.

        Raises:
            AbortedError: If the queue was aborted.
        """
        while True:
            with self._changed:
                while not self._items and not self._closed and not self._aborted:
                    self._changed.wait()
                if self._aborted:
                    raise AbortedError
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
