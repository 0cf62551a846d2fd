"""Start a worker and send it requests, each with a time limit."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bge_bench.errors import BenchError
from bge_bench.systems.base import Item, SystemSpec

_STDERR_LINES = 12
_FAREWELL_S = 30.0


class Worker:
    """A system in its own process; use it in a ``with`` statement.

    Attributes:
        ready: Report of the worker at its first vector.
    """

    def __init__(self, spec: SystemSpec, *, timeout_s: float) -> None:
        """Start the process and wait for its first vector.

        Args:
            spec: How to open the system.
            timeout_s: Longest wait for an answer.

        Raises:
            BenchError: If it dies or does not answer in time.
        """
        self._system = spec.system
        self._timeout_s = timeout_s
        # A file, because a full pipe that nobody reads would block the worker.
        self._stderr = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115
        self._started_s = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603  # our own module
            [
                sys.executable,
                "-m",
                "bge_bench.workers.worker",
                json.dumps(asdict(spec)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.ready = self._next("its first vector")
        except BaseException:
            self.kill()
            raise

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """Return the answer to a request; see `bge_bench.workers.worker`.

        Raises:
            BenchError: If the worker dies or does not answer in time.
        """
        assert self._process.stdin is not None
        # If it has died, waiting for its answer raises the error.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self._process.stdin.flush()
        return self._next(do)

    def embed(
        self, texts: Sequence[Item], folder: Path, *, batch_size: int | None = None
    ) -> tuple[float, NDArray[np.float32]]:
        """Embed texts, or score pairs, which are passed in files of a folder.

        Args:
            texts: The texts or pairs.
            folder: Folder for the files.
            batch_size: New batch size; None keeps the current one.

        Returns:
            The seconds it took, and the vectors or logits; see `System.encode`.

        Raises:
            BenchError: As `ask`.
        """
        file, vectors = folder / "texts.json", folder / "vectors"
        file.write_text(json.dumps(list(texts)), encoding="utf-8")
        more = {} if batch_size is None else {"batch_size": batch_size}
        answer = self.ask("corpus", texts=str(file), vectors=str(vectors), **more)
        return answer["seconds"], np.fromfile(vectors, answer["dtype"]).reshape(answer["shape"])

    def finish(self) -> float:
        """Close the process's input, and wait for its end.

        Returns:
            Seconds from before its start to after its end.

        Raises:
            BenchError: If it does not end, or ends with an error.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"the {self._system} process did not end within {_FAREWELL_S:.0f} s of its last "
                f"answer{self._tail()}"
            ) from None
        seconds = time.perf_counter() - self._started_s
        if status != 0:
            raise self._death()
        return seconds

    def kill(self) -> None:
        """Kill the process, and close its files."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # an unsent request
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put(None)

    def _next(self, what: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise BenchError(
                f"the {self._system} process gave no answer to {what!r} within "
                f"{self._timeout_s:.0f} s; pass a longer --timeout, or fewer texts with "
                f"--sample{self._tail()}"
            ) from None
        if line is None:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> BenchError:
        status = self._process.wait()
        how = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
        return BenchError(f"the {self._system} process died ({how}){self._tail()}")

    def _tail(self) -> str:
        self._stderr.seek(0)
        # A progress bar overwrites its own line.
        lines = [line.rpartition("\r")[2].rstrip() for line in self._stderr.read().split("\n")]
        tail = [line for line in lines if line][-_STDERR_LINES:]
        return "; its last words:\n" + "\n".join(f"    {line}" for line in tail) if tail else ""
