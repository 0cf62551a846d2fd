"""Locks: one for each key, one for each call that is cached, and one between processes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class KeyLocks:
    """A lock for each key."""

    def __init__(self) -> None:
        """Start without locks."""
        self._locks: dict[Hashable, threading.Lock] = {}
        if hasattr(os, "register_at_fork"):
            # A thread that holds a lock exists only in the parent.
            os.register_at_fork(after_in_child=self._locks.clear)

    def __getitem__(self, key: Hashable) -> threading.Lock:
        return self._locks.setdefault(key, threading.Lock())


def once(*, maxsize: int | None = None) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Cache a function like ``functools.lru_cache``, and compute each result in one thread only.

    With ``lru_cache`` alone, threads that call before there is a result would all compute it.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        cached = lru_cache(maxsize)(function)
        locks = KeyLocks()

        @wraps(cached)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with locks[args]:
                return cached(*args, **kwargs)  # type: ignore[arg-type]  # it hashes them

        return call

    return decorate


@contextmanager
def hold_file_lock(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold a lock that excludes other processes, for as long as the body runs.

    The operating system releases the lock of a process that dies.

    Args:
        path: The lock file, in an existing folder.
        waiting: Logged as a warning if another process holds the lock.

    Raises:
        OSError: If the file cannot be created.
        NotImplementedError: If the file system has no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
