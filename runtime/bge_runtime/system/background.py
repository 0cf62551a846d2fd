"""Calls in other threads, none of which is under way any more when the caller goes on.

Ctrl-C reaches the main thread between any two steps of Python code, also while it waits or holds a
lock. A batch that is then still computed takes the process with it when Python ends; a lock that is
never released stops the next call for good. Much of ``threading`` is Python code: until 3.12 a
thread whose ``join`` was interrupted counts as ended, and the locks within ``Event`` and
``Semaphore`` may stay held. So only what is one step is relied on here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Completion:
    """Tells one thread that another one is done with something."""

    def __init__(self) -> None:
        """Begin as not done."""
        self._lock = threading.Lock()
        self._lock.acquire()
        self._is_set = False

    def set(self) -> None:
        """Say that it is done; to be called once."""
        self._is_set = True
        self._lock.release()

    def wait(self) -> None:
        """Wait for `set`. Whatever interrupts is raised, but not before."""
        interrupt: BaseException | None = None
        while not self._is_set:
            try:
                self._lock.acquire()
            except BaseException as error:  # noqa: BLE001  # it is raised below
                interrupt = error
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                del interrupt  # whose traceback has this frame


class BackgroundTask(Generic[_T]):
    """A call in another thread, or in this one where none can be started any more.

    By itself in a new thread and not an executor's: those refuse work as soon as the main thread
    has ended, while Python still waits for the other threads. Later, in ``atexit``, Python 3.12
    starts none at all.

    Whoever starts one sees to it that `wait` is called, whatever happens.
    """

    def __init__(
        self, call: Callable[[], _T], *, name: str | None = None, executor: Executor | None = None
    ) -> None:
        """Prepare the call, for a thread of that name or of an executor."""
        self._call = call
        self._executor = executor
        self._thread = threading.Thread(name=name, target=self._run)
        self._error: BaseException | None = None
        self._claim = threading.Lock()
        self._over = Completion()

    def start(self) -> None:
        """Begin the call."""
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
        except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
            self._error = error
        finally:
            self._over.set()

    def wait(self) -> None:
        """Wait for the call's end; one that has not begun never will.

        Where `start` was interrupted nobody knows whether it will begin.
        """
        if self._claim.acquire(blocking=False):
            self._over.set()
        self._over.wait()
        if self._thread.ident is not None:
            self._thread.join()

    def result(self) -> _T:
        """Wait for the call, and return what it returned, or raise what it raised."""
        self._over.wait()
        # Kept here, it would keep the frames that it came through, and one of them would keep it.
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return self._result


def call_and_note(noted: list[Any], call: Callable[..., Any], *arguments: object) -> None:
    """Call a function of an extension, and append what it returns to a list, in one step.

    So an interrupt finds both done or neither: whether a lock was acquired, say.
    """
    noted += map(call, *([argument] for argument in arguments))
