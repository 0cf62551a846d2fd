"""What every engine is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What is in force, as the engine itself reports it after opening.

    Attributes:
        engine: Name of the engine.
        version: Version of its package.
        device: Kind of device it runs on.
        precision: Arithmetic of the graph it runs.
        provider: The engine's own name for what executes the graph.
        variant: Name of the bundle's variant.
        threads: Threads it computes with.
    """

    engine: str
    version: str
    device: str
    precision: str
    provider: str
    variant: str
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.engine} {self.version} on {self.device} ({self.provider}), "
            f"{self.precision}, variant {self.variant}, {self.threads} threads"
        )


class Engine(Protocol):
    """An opened graph.

    Attributes:
        info: What is in force.
        batch_tokens: Tokens of a batch, padding included, at which it is fastest.
        batch_overhead_tokens: What starting a batch costs, in tokens of computing.
    """

    info: EngineInfo
    batch_tokens: int
    batch_overhead_tokens: int

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        outputs: Sequence[str],
    ) -> list[NDArray[np.float32]]:
        """Run one batch. Any number of threads may call this at once.

        Args:
            input_ids: Token ids, padded on the right. Shape: ``(batch, sequence)``.
            attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
            outputs: Names of the outputs to compute.

        Returns:
            The outputs in the order asked for.

        Raises:
            InferenceError: If the engine fails.
        """
        ...

    def abandon(self) -> None:
        """Let go of the graph without touching it.

        For a process that was forked: the threads behind the graph did not come
        along, and closing it would wait for them.
        """
        ...
