"""The parts of a reranker, for code that batches the pairs of many calls itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import EngineSet, TextTokenizer, TokenizationPlan


class PairPlan(Protocol):
    """A function that tells how passages become the tokens of pairs with a query."""

    def __call__(
        self,
        query: str,
        *,
        max_length: int | None = None,
        query_max_length: int | None = None,
        reuse_query: bool = True,
    ) -> TokenizationPlan:
        """Return the plan; the instructions of the reranker are put before the texts.

        Raises:
            ValueError: If a length is out of range, or leaves no room for texts.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RerankerParts:
    """What a reranker is made of.

    Attributes:
        bundle: The bundle.
        tokenizer: The tokenizer.
        engines: The engines, whose output is `bge_runtime.bundle.LOGITS`.
        devices: Devices that share the work.
        pair_plan: Tells how passages become tokens.
    """

    bundle: Bundle
    tokenizer: TextTokenizer
    engines: EngineSet
    devices: Sequence[str]
    pair_plan: PairPlan
