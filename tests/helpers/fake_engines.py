"""Engines without a graph: a text's vector is made of its tokens, and any run may fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import Batch
from bge_runtime.engines import BatchLimits, EngineInfo
from bge_runtime.serving.scheduling import BatchKey, EngineGroup, Work

DENSE = "sentence_embedding"


class FakeEngine:
    """An engine whose vectors are a text's first token and the number of its tokens.

    Attributes:
        before: Is called with the token ids of each run, and may raise or wait.
        runs: Shapes of the batches that were computed.
        most_at_once: Most runs that were in progress at once.
    """

    past_names: tuple[str, ...] = ()
    past_token_bytes = 0
    cuda_graph_engine = None

    def __init__(self, *, slots: int = 1, tokens: int = 64) -> None:
        """Create one that computes ``slots`` batches at once."""
        self.info = EngineInfo(
            engine="fake",
            version="1",
            device="cpu",
            precision="fp32",
            provider="fake",
            variant="fake",
            threads=slots,
            streams=slots,
        )
        self.batches = BatchLimits(
            tokens=tokens, parallel_tokens=tokens, overhead_tokens=8, concurrent_runs=slots
        )
        self.before: Callable[[NDArray[np.int64]], object] = lambda _: None
        self.runs: list[tuple[int, ...]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
        **_: object,
    ) -> list[NDArray[np.float32]]:
        """Return the vectors; a token of 13 makes one NaN."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.before(input_ids)
            self.runs.append(input_ids.shape)
            vectors = np.stack(
                [input_ids[:, 0], attention_mask.sum(axis=1)], axis=1, dtype=np.float32
            )
            vectors[(input_ids == 13).any(axis=1)] = np.nan
            return [vectors for _ in outputs]
        finally:
            with self._lock:
                self._at_once -= 1


class FakeEngines:
    """What stands for a model's `EngineSet`.

    Attributes:
        by_device: Engines by device.
        reopened: How often they were opened again.
    """

    def __init__(self, by_device: dict[str, FakeEngine]) -> None:
        """Keep the engines."""
        self.by_device, self.reopened = by_device, 0
        self.prefix_cache = SimpleNamespace(share=lambda *_: None)
        self.on_reopen: Callable[[], object] = lambda: None

    def on_device(self, device: str) -> FakeEngine:
        """Return the engine of a device."""
        return self.by_device[device]

    def streams_on(self, device: str) -> FakeEngine | None:
        """Return the engine for parallel batches."""
        engine = self.by_device[device]
        return engine if engine.info.streams > 1 else None

    def reopen(self) -> None:
        """Count it."""
        self.reopened += 1
        self.on_reopen()


def fake_group(
    name: str = "fake", by_device: dict[str, FakeEngine] | None = None
) -> tuple[EngineGroup, FakeEngines]:
    """Return a group of engines, and the set that it opens."""
    engines = FakeEngines(by_device or {"cpu": FakeEngine()})
    manifest = SimpleNamespace(model=SimpleNamespace(pad_token_id=0))
    parts: Any = SimpleNamespace(
        bundle=SimpleNamespace(manifest=manifest, path=Path("fake")),
        engines=engines,
        devices=tuple(engines.by_device),
    )
    return EngineGroup(name, parts), engines


class Vectors:
    """Collects the vectors of a request.

    Attributes:
        by_row: Vector of each text that has one.
        given: How often a text got one.
    """

    def __init__(self) -> None:
        """Start without vectors."""
        self.by_row: dict[int, list[float]] = {}
        self.given = 0

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        """Keep the vectors of a batch."""
        for row, vector in zip(batch.rows.tolist(), outputs[0].tolist(), strict=True):
            self.by_row[row] = vector
            self.given += 1


class Request:
    """A request's work, and its end.

    Attributes:
        work: The work.
        vectors: What it got.
        ends: How often it was told that it is over.
    """

    def __init__(
        self,
        group: EngineGroup,
        lengths: Sequence[int],
        *,
        bulk: bool = False,
        first: int = 1,
        deadline_s: float | None = None,
    ) -> None:
        """Make texts of some lengths, all of which begin with the token ``first``."""
        tokens = [
            np.array([first, *[7] * (length - 1)], dtype=np.int64)[:length] for length in lengths
        ]
        self.vectors, self.ends = Vectors(), 0
        self._over = threading.Event()
        vectors: Any = self.vectors
        self.work = Work(
            BatchKey(group, (DENSE,)),
            tokens,
            vectors,
            bulk=bulk,
            on_done=self._end,
            deadline_s=deadline_s,
        )

    def _end(self, _: Work) -> None:
        self.ends += 1
        self._over.set()

    def wait(self, timeout_s: float = 20.0) -> Exception | None:
        """Return the error with which it ended, or None; fail if it does not end."""
        assert self._over.wait(timeout_s), "no answer"
        return self.work.error

    def check(self) -> None:
        """Check that each text has its own vector, once."""
        expected = {
            row: [float(ids[0]), float(len(ids))] for row, ids in enumerate(self.work.tokens)
        }
        error = self.wait()
        assert error is None, repr(error)
        assert self.vectors.by_row == expected
        assert self.vectors.given == len(expected)


def wait_for(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
    """Wait until something is true."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come true"
        time.sleep(0.002)
