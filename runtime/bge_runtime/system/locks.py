"""What is made once is made once, however many threads ask for it at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class KeyLocks:
    """A lock for each key."""

    def __init__(self) -> None:
        """Begin with none."""
        self._locks: dict[Hashable, threading.Lock] = {}
        if hasattr(os, "register_at_fork"):
            # The thread that holds one stays in the parent.
            os.register_at_fork(after_in_child=self._locks.clear)

    def __getitem__(self, key: Hashable) -> threading.Lock:
        return self._locks.setdefault(key, threading.Lock())


def once(*, maxsize: int | None = None) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """As ``functools.lru_cache``, but calls wait for one with the same arguments that is under way.

    Behind ``lru_cache`` each of them would compute, since none finds a result yet.
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
