"""The few threads that call ONNX Runtime's providers for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bge_runtime.system import BackgroundTask

_T = TypeVar("_T")


class CudaThreads:
    """Threads that run all calls into a session.

    ONNX Runtime creates streams and handles of cuBLAS for every thread that ever calls it: with
    these it is always called by the same few.
    """

    def __init__(self, count: int) -> None:
        """Prepare ``count`` threads; they start with their first call."""
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="bge-cuda")

    def run(self, call: Callable[[], _T]) -> _T:
        """Run a call in one of the threads, or in this thread while Python is ending."""
        task = BackgroundTask(call, executor=self._executor)
        try:
            task.start()
            return task.result()
        finally:
            task.wait()
