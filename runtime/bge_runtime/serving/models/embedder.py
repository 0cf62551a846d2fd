"""A served embedder: from the texts of a request to their vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.encoding import TokenizationPlan, round_vectors
from bge_runtime.errors import NotFiniteError
from bge_runtime.m3 import LexicalWeights, M3Outputs, graph_outputs
from bge_runtime.models import AnyFlagModel, FlagICLModel, TextKind
from bge_runtime.serving.context import RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.models.base import (
    MARKED_QUERY_TOKENS,
    QUERY_TOKENS,
    TOKEN_CHARACTERS,
    ServedModel,
    Tokens,
)
from bge_runtime.serving.models.long_texts import shorten
from bge_runtime.serving.options import ServeOptions

Inputs = Sequence[str] | Sequence[NDArray[np.int64]]
"""Texts, or token ids of texts."""


class Embedded(NamedTuple):
    """The outputs of a request, in the order of its texts.

    Attributes:
        dense: float32, or float16 where ``encode`` returns it. Shape: ``(texts, dim)``.
        lexical: Lexical weights, sorted by token id.
        colbert: Vectors of each text's tokens. Shape: ``(tokens - 1, colbert_dim)`` each.
        tokens: Tokens of all texts after truncation.
    """

    dense: NDArray[np.float32] | None
    lexical: LexicalWeights | None
    colbert: list[NDArray[np.float32]] | None
    tokens: int


class ServedEmbedder(ServedModel):
    """An embedder behind a name."""

    KIND: ClassVar[str] = "embedder"

    def __init__(
        self,
        name: str,
        model: AnyFlagModel,
        options: ServeOptions,
        metrics: Metrics,
        *,
        base_path: str = "",
        max_length: int,
    ) -> None:
        """Open the engines that the model has not opened yet."""
        self._model, self._parts = model, model.parts()
        super().__init__(
            name, model, self._parts, options, metrics, base_path=base_path, max_length=max_length
        )
        self._plans: dict[TextKind, TokenizationPlan] = {
            kind: self._parts.text_plan(kind=kind, max_length=self.max_length)
            for kind in (None, "query", "passage")
        }

    @property
    def outputs(self) -> list[str]:
        """FlagEmbedding's names of what it can return."""
        several = self.card.colbert_dim is not None
        return ["dense", "sparse", "colbert_vecs"] if several else ["dense"]

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs that requests may ask for."""
        heads = self.card.colbert_dim is not None
        return graph_outputs(dense=True, sparse=heads, colbert=heads)

    @property
    def query_instruction(self) -> str | None:
        """What it puts before texts that are marked as queries, if anything."""
        return self._model.query_instruction_for_retrieval

    async def probe(self, context: RequestContext) -> None:
        """Embed a short text, to find out whether the engines answer."""
        await self.embed(["health"], context)

    async def embed(
        self,
        inputs: Inputs,
        context: RequestContext,
        *,
        kind: TextKind = None,
        outputs: tuple[str, ...] = (SENTENCE_EMBEDDING,),
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool = True,
        keep_end: bool = False,
    ) -> Embedded:
        """Embed the texts of a request.

        Args:
            inputs: The texts.
            context: The request.
            kind: What the texts are.
            outputs: Names of the graph's outputs.
            normalize: Scale dense and ColBERT vectors to unit length.
            dimensions: Components to keep of both, before that; None for all.
            truncate: Cut texts that are too long; otherwise they are an error.
            keep_end: Cut on the left.

        Raises:
            RequestError: If the request is wrong, or cannot be answered.
            ClientLeftError: If the client leaves.
        """
        context.model, context.texts = self.name, len(inputs)
        self._check(inputs, dimensions)
        if keep_end and kind == "query" and isinstance(self._model, FlagICLModel):
            raise RequestError(
                Kind.INVALID,
                f"queries of {self.name} are cut on the right only, since examples are before them",
                param="truncation_direction",
            )
        tokens = await self._tokenize(inputs, context, kind, truncate=truncate, keep_end=keep_end)
        collected = M3Outputs(
            len(tokens),
            outputs,
            self.card,
            normalized=normalize,
            truncate_dim=dimensions,
            by_id=True,
        )
        await self._compute(
            tokens,
            collected,
            context,
            outputs=outputs,
            prefix=self._plans[kind].prefix,
            bulk=_is_bulk(kind, context.tokens),
        )
        return self._result(collected, context.tokens)

    def _check(self, inputs: Inputs, dimensions: int | None) -> None:
        self.check_count(inputs)
        if dimensions is not None and not 0 < dimensions <= self.card.dim:
            raise RequestError(
                Kind.INVALID,
                f"dimensions is {dimensions}, and vectors of {self.name} have 1 to "
                f"{self.card.dim} components",
                param="dimensions",
            )
        self._check_engines()

    async def _tokenize(
        self,
        inputs: Inputs,
        context: RequestContext,
        kind: TextKind,
        *,
        truncate: bool,
        keep_end: bool,
    ) -> list[Tokens]:
        started_s = time.monotonic()
        truncated: list[int] = []
        if isinstance(inputs[0], str):
            texts = cast("Sequence[str]", inputs)
            tokens = await self._tokenize_texts(texts, context, kind, truncated, keep_end=keep_end)
        else:
            ids = cast("Sequence[NDArray[np.int64]]", inputs)
            tokens = self._cut_ids(ids, truncated, keep_end=keep_end)
            total = sum(map(len, tokens))
            self._admit(total, bulk=_is_bulk(kind, total))
        if truncated and not truncate:
            raise RequestError(
                Kind.INVALID,
                f"input {truncated[0]} has more than {self.max_length} tokens. Shorten it, or "
                "send truncate: true",
                param="truncate",
            )
        self._note_tokens(tokens, len(truncated), started_s, context)
        return tokens

    async def _tokenize_texts(
        self,
        texts: Sequence[str],
        context: RequestContext,
        kind: TextKind,
        truncated: list[int],
        *,
        keep_end: bool,
    ) -> list[Tokens]:
        characters = sum(map(len, texts))
        about = min(characters // TOKEN_CHARACTERS, len(texts) * self.max_length) + len(texts)
        tokenize: Callable[..., list[Tokens]] = self._plans[kind].tokenize
        if keep_end:
            tokenize = partial(tokenize, keep_end=True)

        def tokenize_some(some: Sequence[str], first: int) -> list[Tokens]:
            some = shorten(some, self.tokenizer, self.max_length, first=first, keep_end=keep_end)
            return tokenize(some, first=first, truncated=truncated)

        bulk = _is_bulk(kind, about)
        return await self._tokenize_in_parts(texts, context, tokenize_some, about=about, bulk=bulk)

    def _cut_ids(
        self, inputs: Sequence[NDArray[np.int64]], truncated: list[int], *, keep_end: bool
    ) -> list[Tokens]:
        rows = []
        for index, ids in enumerate(inputs):
            if not len(ids) or ids.min() < 0 or ids.max() >= self.card.vocab_size:
                raise RequestError(
                    Kind.INVALID,
                    f"input {index} has no token ids of {self.name}: they are 0 to "
                    f"{self.card.vocab_size - 1}, and there must be at least one. Send text",
                    param="input",
                )
            if len(ids) > self.max_length:
                truncated.append(index)
                ids = ids[-self.max_length :] if keep_end else ids[: self.max_length]  # noqa: PLW2901
            rows.append(ids)
        return rows

    def _result(self, collected: M3Outputs, tokens: int) -> Embedded:
        dense = collected.dense
        if dense is not None:
            try:
                dense = round_vectors(dense, self._parts.vector_dtype, np.arange(len(dense)))
            except NotFiniteError as error:
                raise RequestError(Kind.BACKEND, str(error)) from error
        return Embedded(dense, collected.lexical(), collected.colbert, tokens)


def _is_bulk(kind: TextKind, tokens: int) -> bool:
    """Return whether a request waits in the lane for bulk work."""
    if kind == "passage":
        return True
    return tokens > (QUERY_TOKENS if kind is None else MARKED_QUERY_TOKENS)
