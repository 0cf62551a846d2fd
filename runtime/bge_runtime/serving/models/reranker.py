"""A served reranker: from a query and its passages to their scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import LOGITS
from bge_runtime.encoding import Batch, TokenizationPlan
from bge_runtime.rerankers import AnyReranker
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.models.base import (
    MARKED_QUERY_TOKENS,
    TEXTS_AT_ONCE,
    TOKEN_CHARACTERS,
    ServedModel,
    Tokens,
)
from bge_runtime.serving.models.long_texts import shorten
from bge_runtime.serving.options import ServeOptions


class Ranked(NamedTuple):
    """The scores of a request's passages.

    Attributes:
        scores: The score of each passage: logits. Shape: ``(passages,)``.
        order: Positions of the passages, the best one first. Shape: ``(passages,)``.
        tokens: Tokens of all pairs after truncation.
    """

    scores: NDArray[np.float64]
    order: NDArray[np.intp]
    tokens: int


class _Scores:
    """Collects the scores of a request."""

    def __init__(self, count: int) -> None:
        self.by_row = np.empty(count)

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        self.by_row[batch.rows] = outputs[0][:, 0]


class ServedReranker(ServedModel):
    """A reranker behind a name."""

    KIND: ClassVar[str] = "reranker"

    def __init__(
        self,
        name: str,
        model: AnyReranker,
        options: ServeOptions,
        metrics: Metrics,
        *,
        base_path: str = "",
        max_length: int,
    ) -> None:
        """Open the engines that the model has not opened yet.

        Raises:
            ValueError: If ``max_length`` leaves no room for texts.
        """
        parts = model.parts()
        super().__init__(
            name, model, parts, options, metrics, base_path=base_path, max_length=max_length
        )
        self._model, self.pair_plan = model, parts.pair_plan
        # Fails if that leaves no room.
        self.pair_plan("", max_length=self.max_length).tokenize([""])

    @property
    def outputs(self) -> list[str]:
        """What it can return for a pair."""
        return ["score"]

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs that requests may ask for."""
        return (LOGITS,)

    @property
    def query_instruction(self) -> str | None:
        """What it puts before queries, if anything."""
        return self._model.query_instruction

    async def probe(self, context: RequestContext) -> None:
        """Score a short pair, to find out whether the engines answer."""
        await self.rank("health", ["health"], context)

    async def rank(
        self,
        query: str,
        passages: Sequence[str],
        context: RequestContext,
        *,
        passage_tokens: int | None = None,
        truncate: bool = True,
        keep_end: bool = False,
    ) -> Ranked:
        """Score the passages of a request.

        Args:
            query: The query.
            passages: The passages.
            context: The request.
            passage_tokens: Tokens at which a passage is cut, if a pair has room for more.
            truncate: Cut pairs that are too long; otherwise they are an error.
            keep_end: Cut on the left, which is an error, too: pairs are cut on the right only.

        Raises:
            RequestError: If the request is wrong, or cannot be answered.
            ClientLeftError: If the client leaves.
        """
        context.model, context.texts = self.name, len(passages)
        self.check_count(passages)
        self._check_engines()
        started_s = time.monotonic()
        pairs = _Pairs(self, query, passage_tokens, several=len(passages) > 1)
        tokens = await self._tokenize_in_parts(
            passages,
            context,
            pairs.tokenize,
            about=(about := self._tokens_about(query, passages)),
            bulk=about > MARKED_QUERY_TOKENS,
            beside=len(query) * -(-len(passages) // TEXTS_AT_ONCE),
        )
        if pairs.truncated and (not truncate or keep_end):
            raise RequestError(
                Kind.INVALID,
                f"the query and passage {pairs.truncated[0]} have more than {self.max_length} "
                "tokens together. "
                + (
                    "Passages are cut on the right only: send truncation_direction: right"
                    if truncate
                    else "Shorten them, or send truncate: true"
                ),
                param="truncation_direction" if truncate else "truncate",
            )
        self._note_tokens(tokens, len({*pairs.truncated, *pairs.shortened}), started_s, context)
        collected = _Scores(len(tokens))
        await self._compute(
            tokens,
            collected,
            context,
            outputs=self.graph_outputs,
            prefix=pairs.prefix,
            bulk=context.tokens > MARKED_QUERY_TOKENS,
        )
        scores = collected.by_row
        return Ranked(scores, np.argsort(-scores, kind="stable"), context.tokens)

    def _tokens_about(self, query: str, passages: Sequence[str]) -> int:
        characters = sum(map(len, passages)) + len(query) * len(passages)
        most = len(passages) * self.max_length
        return min(characters // TOKEN_CHARACTERS, most) + len(passages)


class _Pairs:
    """Makes the tokens of a query's pairs.

    Attributes:
        truncated: Positions of the passages whose pairs were cut.
        shortened: Positions of the passages that were cut as the request asks.
    """

    def __init__(
        self, model: ServedReranker, query: str, passage_tokens: int | None, *, several: bool
    ) -> None:
        self._model, self._query = model, query
        self._passage_tokens, self._several = passage_tokens, several
        self.truncated: list[int] = []
        self.shortened: list[int] = []
        self._plan: TokenizationPlan | None = None

    @property
    def prefix(self) -> Tokens | None:
        """Tokens that all pairs begin with; None before any were made, and for encoders."""
        return None if self._plan is None else self._plan.prefix

    def tokenize(self, passages: Sequence[str], first: int) -> list[Tokens]:
        """Return the tokens of the query with each passage.

        Raises:
            RequestError: If a very long text cannot be cut.
            ValueError: If a text is not valid Unicode, or leaves no room.
        """
        model, length = self._model, self._model.max_length
        if self._plan is None:  # in the thread that tokenizes, since a query may be long
            (query,) = shorten([self._query], model.tokenizer, length, name="the query")
            self._plan = model.pair_plan(query, max_length=length, reuse_query=self._several)
        passages = shorten(passages, model.tokenizer, length, first=first)
        if self._passage_tokens is not None and self._passage_tokens < length:
            passages = self._cut(passages, self._passage_tokens, first)
        return self._plan.tokenize(passages, first=first, truncated=self.truncated)

    def _cut(self, passages: Sequence[str], tokens: int, first: int) -> Sequence[str]:
        places = self._model.tokenizer.locate(passages, first=first)
        cut = []
        for row, (passage, found) in enumerate(zip(passages, places, strict=True), start=first):
            if len(found.starts) > tokens:
                self.shortened.append(row)
                passage = passage[: found.starts[tokens]]  # noqa: PLW2901
            cut.append(passage)
        return cut
