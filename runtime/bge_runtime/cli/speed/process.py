"""One variant of a bundle, opened in a process of its own.

So its memory can be told from that of others, and it may crash without taking them along.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

from bge_runtime.bundle import Bundle, Variant
from bge_runtime.cli.speed.texts import QUERY, sample_texts
from bge_runtime.errors import BgeError, EngineError
from bge_runtime.models import FlagAutoModel
from bge_runtime.rerankers import FlagAutoReranker
from bge_runtime.sources import RERANKER_CLASSES
from bge_runtime.system import peak_memory


@dataclass(frozen=True, kw_only=True)
class InForce:
    """What runs in a process.

    Attributes:
        engine: The engine and its version.
        peak_bytes: Most memory that the process has held; None if the system does not say.
        warnings: What the model has warned of.
    """

    engine: str
    peak_bytes: int | None
    warnings: tuple[str, ...]


class VariantProcess:
    """A variant in a process, which ends with the context."""

    def __init__(self, bundle: Bundle, variant: Variant, *, device: str) -> None:
        """Start the process; it opens the variant with its first call."""
        spawning = multiprocessing.get_context("spawn")  # engines do not survive a fork
        self._name = variant.name
        self._connection, theirs = spawning.Pipe()
        asked = {"engine": variant.engine, "precision": variant.precision, "devices": device}
        reranks = bundle.manifest.model.model_class in RERANKER_CLASSES
        self._process = spawning.Process(
            target=_serve, args=(theirs, str(bundle.path), reranks, asked), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def corpus_s(self, count: int) -> float:
        """Return the seconds that the first texts took together."""
        return float(self._ask("corpus_s", count))

    def query_ms(self, calls: int) -> list[float]:
        """Return the milliseconds of each call with one query, or one pair of a reranker."""
        return list(self._ask("query_ms", calls))

    def in_force(self) -> InForce:
        """Return what runs, and the memory that it has taken."""
        found: InForce = self._ask("in_force")
        return found

    def _ask(self, name: str, *arguments: object) -> Any:
        try:
            self._connection.send((name, arguments))
            result = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise EngineError(
                f"the process of {self._name} ended with status {self._process.exitcode}"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


class _OpenVariant:
    """What a process answers."""

    def __init__(
        self,
        path: str,
        *,
        reranks: bool,
        asked: dict[str, Any],
        caught: list[warnings.WarningMessage],
    ) -> None:
        self._caught = caught
        model: Any = (FlagAutoReranker if reranks else FlagAutoModel).from_finetuned(path, **asked)
        texts = sample_texts()
        self._model = model
        self._rows: list[Any] = [(QUERY, text) for text in texts] if reranks else list(texts)
        self._compute: Callable[[list[Any]], Any] = model.compute_score if reranks else model.encode
        self._compute_alone: Callable[[], Any] = (
            partial(model.compute_score, self._rows[:1])
            if reranks
            else partial(model.encode_queries, QUERY)
        )
        # A corpus opens them on its own, later.
        model.parts().engines.streams_on(asked["devices"])

    def corpus_s(self, count: int) -> float:
        start = time.perf_counter()
        self._compute(self._rows[:count])
        return time.perf_counter() - start

    def query_ms(self, calls: int) -> list[float]:
        found = []
        for _ in range(calls):
            start = time.perf_counter()
            self._compute_alone()
            found.append((time.perf_counter() - start) * 1e3)
        return found

    def in_force(self) -> InForce:
        info = self._model.engine.info
        told = [str(each.message) for each in self._caught if each.category is UserWarning]
        return InForce(
            engine=f"{info.engine} {info.version}",
            peak_bytes=peak_memory(),
            warnings=tuple(dict.fromkeys(told)),
        )


def _serve(connection: Connection, path: str, reranks: bool, asked: dict[str, Any]) -> None:
    """Answer until the other end is closed; in a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    opened: _OpenVariant | None = None
    with suppress(EOFError, OSError), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        while True:
            name, arguments = connection.recv()
            try:
                opened = opened or _OpenVariant(path, reranks=reranks, asked=asked, caught=caught)
                result = getattr(opened, name)(*arguments)
            except BgeError as error:
                result = error
            connection.send(result)
