"""Calls in background threads that are always over before the caller goes on, despite Ctrl-C.

An interrupt can reach the main thread between any two bytecode steps, even while it waits or holds
a lock. If a batch were still running when Python exits, the process would crash. If a lock stayed
held, the next call would block for ever. ``threading`` does not prevent this, since much of it is
Python code: before 3.12, a thread whose ``join`` was interrupted counts as ended, and the locks
inside ``Event`` and ``Semaphore`` may stay held. So this module relies on single steps only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Completion:
    """Signals one thread that another one has finished."""

    def __init__(self) -> None:
        """Start as not finished."""
        self._lock = threading.Lock()
        self._lock.acquire()
        self._is_set = False

    def set(self) -> None:
        """Mark as finished. Call it once."""
        self._is_set = True
        self._lock.release()

    def wait(self) -> None:
        """Wait for `set`. An interrupt is raised only after it."""
        interrupt: BaseException | None = None
        while not self._is_set:
            try:
                self._lock.acquire()
            except BaseException as error:  # noqa: BLE001  # raised below
                interrupt = error
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt  # its traceback refers to this frame


class BackgroundTask(Generic[_T]):
    """A call in another thread, or in this one if no thread can be started any more.

    Without an executor it gets a new thread, since executors reject work once the main thread has
    ended, while Python still waits for other threads. Later, in ``atexit``, Python 3.12 starts no
    threads at all.

    Callers must make sure that `wait` is called, whatever happens.
    """

    def __init__(
        self, call: Callable[[], _T], *, name: str | None = None, executor: Executor | None = None
    ) -> None:
        """Prepare the call, for a new thread or an executor."""
        self._call = call
        self._executor = executor
        self._thread = threading.Thread(name=name, target=self._run)
        self._error: BaseException | None = None
        self._claim = threading.Lock()
        self._over = Completion()

    def start(self) -> None:
        """Start the call. If it was started before, nothing happens."""
        try:
            if self._executor is None:
                self._thread.start()
            else:
                self._executor.submit(self._run)
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001  # raised by `result`
            self._error = error
        finally:
            self._over.set()

    def wait(self) -> None:
        """Wait until the call is over. If it has not begun, it never will.

        This settles the case in which `start` was interrupted.
        """
        if self._claim.acquire(blocking=False):
            self._over.set()
        self._over.wait()
        if self._thread.ident is not None:
            self._thread.join()

    def result(self) -> _T:
        """Wait for the call, and return its result or raise its error."""
        self._over.wait()
        # Kept here, the error would form a reference cycle with the frames in its traceback.
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._result


def take_one(taken: list[_T], queue: SimpleQueue[_T]) -> None:
    """Move one item from a queue to an empty list. An interrupt is raised only after it."""
    # The loop of `Completion.wait`, again: to share it would take one more call, and an interrupt
    # at its beginning would end the wait.
    interrupt: BaseException | None = None
    while not taken:
        try:
            call_and_note(taken, queue.get, True)
        except BaseException as error:  # noqa: BLE001  # raised below
            interrupt = error
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt  # its traceback refers to this frame


def call_and_note(noted: list[Any], call: Callable[..., Any], *arguments: object) -> None:
    """Call a function of a C extension and append its result to a list, in one step.

    An interrupt finds both done or neither, so the list shows, say, whether a lock was acquired.
    """
    noted += map(call, *([argument] for argument in arguments))
