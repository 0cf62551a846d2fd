"""A model that is served: from the texts of a request to their vectors."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import SENTENCE_EMBEDDING
from bge_runtime.encoding import TokenizationPlan, round_vectors
from bge_runtime.errors import BgeError, NotFiniteError
from bge_runtime.m3 import LexicalWeights, M3Outputs, graph_outputs
from bge_runtime.models import AnyFlagModel, FlagICLModel, TextKind
from bge_runtime.serving.admission import Admission
from bge_runtime.serving.context import RequestContext, notify, succeed
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.long_texts import shorten
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.options import ServeOptions
from bge_runtime.serving.scheduling import (
    BatchKey,
    EngineGroup,
    Scheduler,
    StalledError,
    Work,
    WorkCancelledError,
)
from bge_runtime.serving.statistics import LastMinute
from bge_runtime.sources import is_hub_id

Inputs = Sequence[str] | Sequence[NDArray[np.int64]]
"""Texts, or token ids of texts."""

_INLINE_CHARACTERS = 2048
"""Texts up to this length are tokenized without a thread, in half a millisecond: starting one takes
nearly as long, and a query would wait for it."""

_TEXT_CHARACTERS = 32
"""Characters that take as long as starting with a text."""

_TOKEN_CHARACTERS = 4
"""Characters of a token, about, before texts are tokenized."""

_TEXTS_AT_ONCE = 64
"""Texts that are tokenized before a look at whether anybody still waits."""

_QUERY_TOKENS = 512
"""Requests of up to this many tokens wait in the lane for queries, unless marked as passages."""

_MARKED_QUERY_TOKENS = 8192
"""The same for requests that are marked as queries."""


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


class ServedModel:
    """A model behind a name.

    Attributes:
        name: Name under which it is served.
        base_path: Where its routes are, without a slash at the end.
        model: The model.
        parts: Its parts.
        card: What its bundle says of it.
        max_length: Tokens at which texts are cut.
        engines: Its engines.
        last_minute: What it has served lately.
        scheduler: The scheduler of all models, once the server has started.
        threads: Threads that tokenize, for queries and (True) for bulk work.
    """

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
        self.name, self.base_path, self.model = name, base_path, model
        self.max_length = max_length
        self.parts = model.parts()
        self.card = model.bundle.manifest.model
        self.engines = EngineGroup(name, self.parts, parallel=options.parallel_batches)
        self.last_minute = LastMinute()
        self._options, self._metrics = options, metrics
        self._tokenization_seconds = metrics.tokenization_seconds.labels(name)
        self._queue_seconds = metrics.queue_seconds.labels(name)
        self._inference_seconds = metrics.inference_seconds.labels(name)
        self._plans: dict[TextKind, TokenizationPlan] = {
            kind: self.parts.text_plan(kind=kind, max_length=max_length)
            for kind in (None, "query", "passage")
        }
        self._admission: Admission
        self.scheduler: Scheduler
        self.threads: dict[bool, ThreadPoolExecutor]

    @property
    def outputs(self) -> list[str]:
        """FlagEmbedding's names of what it can return."""
        several = self.card.colbert_dim is not None
        return ["dense", "sparse", "colbert_vecs"] if several else ["dense"]

    @property
    def has_query_instruction(self) -> bool:
        """Whether the model puts an instruction before queries."""
        return self.model.query_instruction_for_retrieval is not None

    @property
    def trouble(self) -> str | None:
        """What was last wrong with the engines; None if they answer."""
        stalled_s = self.scheduler.stalled(self.engines)
        if stalled_s is not None:
            return f"the engine of {self.name} has not answered for {stalled_s:.0f} s"
        return self.engines.failed

    def describe(self) -> dict[str, Any]:
        """Return what is served, what is in force, and how it goes, as JSON."""
        info, card = self.model.engine.info, self.card
        source = self.model.bundle.manifest.provenance.source
        scheduler, trouble = self.scheduler, self.trouble
        return {
            "name": self.name,
            "base_path": self.base_path,
            "model": card.name,
            "source": source if is_hub_id(source) else None,  # a path is nobody's business
            "model_class": card.model_class,
            "dim": card.dim,
            "max_length": self.max_length,
            "outputs": self.outputs,
            "query_instruction": self.model.query_instruction_for_retrieval,
            "engine": {
                "engine": info.engine,
                "version": info.version,
                "device": info.device,
                "provider": info.provider,
                "precision": info.precision,
                "variant": info.variant,
                "threads": info.threads,
                "slots": sum(found.slots for found in self.engines.devices.values()),
            },
            "parity": self._parity(info.variant),
            "healthy": trouble is None,
            "trouble": trouble,
            "queue": {
                "tokens": scheduler.queued_tokens(bulk=False) + scheduler.queued_tokens(bulk=True),
                "requests": scheduler.queued_requests,
                "running_batches": scheduler.running_batches,
                "capacity_tokens": self._admission.room_tokens,
            },
            **self.last_minute.report(),
        }

    def _parity(self, variant: str) -> dict[str, float] | None:
        variants = {each.name: each for each in self.model.bundle.manifest.variants}
        parity = variants[variant].parity
        return None if parity is None else dataclasses.asdict(parity)

    def start(self, scheduler: Scheduler) -> None:
        """Start the threads that tokenize, and compute a batch on each engine."""
        self.scheduler = scheduler
        self._admission = Admission(
            self.engines, scheduler, max_queued_tokens=self._options.max_queued_tokens
        )
        self.threads = {
            bulk: ThreadPoolExecutor(1, thread_name_prefix="bge-tokenize") for bulk in (False, True)
        }
        heads = self.card.colbert_dim is not None
        self.engines.warm_up(graph_outputs(dense=True, sparse=heads, colbert=heads))

    def close(self) -> None:
        """End the threads that tokenize."""
        for threads in self.threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

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
        if keep_end and kind == "query" and isinstance(self.model, FlagICLModel):
            raise RequestError(
                Kind.INVALID,
                f"queries of {self.name} are cut on the right only, since examples are before them",
                param="truncation_direction",
            )
        tokens = await self._tokenize(inputs, context, kind, truncate=truncate, keep_end=keep_end)
        total = context.tokens = sum(map(len, tokens))
        self.check_tokens(total)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[None] = loop.create_future()
        prefix = self._plans[kind].prefix
        work = Work(
            BatchKey(self.engines, outputs, b"" if prefix is None else prefix.tobytes()),
            tokens,
            M3Outputs(
                len(tokens),
                outputs,
                self.card,
                normalized=normalize,
                truncate_dim=dimensions,
                by_id=True,
            ),
            bulk=_is_bulk(kind, total),
            on_done=lambda _: notify(loop, succeed, result, None),
            deadline_s=context.deadline_s,
        )
        try:
            self.scheduler.submit(work)
            await context.wait(result)
        except WorkCancelledError as error:
            raise self._failure(error, context) from error
        finally:
            if not work.is_over or work.queued_tokens:
                self.scheduler.cancel(work)
            self._note_times(work, context)
        if work.error is not None:
            raise self._failure(work.error, context)
        return self._result(work, total)

    def _admit(self, tokens: int, *, bulk: bool) -> None:
        try:
            self._admission.check(tokens, bulk=bulk)
        except RequestError:
            self._metrics.rejected.labels(self.name).inc()
            raise

    def check_count(self, inputs: Sequence[object]) -> None:
        """Check the number of inputs of a request.

        Raises:
            RequestError: If there are none, or too many.
        """
        if not inputs:
            raise RequestError(Kind.EMPTY, "there is no input; send at least one text")
        if len(inputs) > self._options.max_inputs:
            raise RequestError(
                Kind.TOO_LARGE,
                f"the request has {len(inputs):,} inputs, and {self._options.max_inputs:,} is the "
                "limit of a request. Send it in parts",
            )

    def check_tokens(self, tokens: int) -> None:
        """Check the tokens of a request.

        Raises:
            RequestError: If there are too many.
        """
        if tokens > self._options.max_request_tokens:
            raise RequestError(
                Kind.TOO_LARGE,
                f"the request has {tokens:,} tokens, and {self._options.max_request_tokens:,} is "
                "the limit of a request. Send it in parts",
            )

    def _check(self, inputs: Inputs, dimensions: int | None) -> None:
        self.check_count(inputs)
        if dimensions is not None and not 0 < dimensions <= self.card.dim:
            raise RequestError(
                Kind.INVALID,
                f"dimensions is {dimensions}, and vectors of {self.name} have 1 to "
                f"{self.card.dim} components",
                param="dimensions",
            )
        stalled_s = self.scheduler.stalled(self.engines)
        if stalled_s is not None:
            raise RequestError(
                Kind.UNAVAILABLE,
                f"the engine of {self.name} has not answered for {stalled_s:.0f} s",
                headers={"retry-after": "5"},
            )

    async def _tokenize(
        self,
        inputs: Inputs,
        context: RequestContext,
        kind: TextKind,
        *,
        truncate: bool,
        keep_end: bool,
    ) -> list[NDArray[np.int64]]:
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
        context.truncated = len(truncated)
        context.tokenize_s = time.monotonic() - started_s
        self._tokenization_seconds.observe(context.tokenize_s)
        if truncated:
            self._metrics.truncated.labels(self.name).inc(len(truncated))
        return tokens

    async def _tokenize_texts(
        self,
        texts: Sequence[str],
        context: RequestContext,
        kind: TextKind,
        truncated: list[int],
        *,
        keep_end: bool,
    ) -> list[NDArray[np.int64]]:
        characters = sum(map(len, texts))
        # What has no room in the queue is refused before its texts are tokenized.
        about = min(characters // _TOKEN_CHARACTERS, len(texts) * self.max_length) + len(texts)
        bulk = _is_bulk(kind, about)
        self._admit(about, bulk=bulk)
        plan = self._plans[kind]
        tokenize: Callable[..., list[NDArray[np.int64]]] = plan.tokenize
        if keep_end:
            tokenize = partial(tokenize, keep_end=True)

        def tokenize_all() -> list[NDArray[np.int64]]:
            rows: list[NDArray[np.int64]] = []
            for start in range(0, len(texts), _TEXTS_AT_ONCE):
                context.check()
                some = shorten(
                    texts[start : start + _TEXTS_AT_ONCE],
                    self.parts.tokenizer,
                    self.max_length,
                    first=start,
                    keep_end=keep_end,
                )
                rows += tokenize(some, first=start, truncated=truncated)
            return rows

        try:
            if characters + _TEXT_CHARACTERS * len(texts) <= _INLINE_CHARACTERS:
                return tokenize_all()
            with self._admission.tokenizing(about, bulk=bulk):
                return await context.run(self.threads[bulk], tokenize_all)
        except ValueError as error:
            raise RequestError(Kind.INVALID, str(error), param="input") from error

    def _cut_ids(
        self, inputs: Sequence[NDArray[np.int64]], truncated: list[int], *, keep_end: bool
    ) -> list[NDArray[np.int64]]:
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

    def _note_times(self, work: Work, context: RequestContext) -> None:
        started_s = work.started_s if work.started_s is not None else time.monotonic()
        context.queue_s = started_s - work.queued_s
        self._queue_seconds.observe(context.queue_s)
        if work.started_s is not None and work.ended_s is not None:
            context.compute_s = work.ended_s - work.started_s
            self._inference_seconds.observe(context.compute_s)

    def _failure(self, error: Exception, context: RequestContext) -> RequestError:
        if isinstance(error, TimeoutError):
            return context.late()
        if isinstance(error, WorkCancelledError):
            return RequestError(Kind.UNAVAILABLE, "the server is stopping")
        self._metrics.failed_requests.labels(self.name).inc()
        if isinstance(error, NotFiniteError):
            return RequestError(Kind.BACKEND, str(error))
        if isinstance(error, StalledError):
            return RequestError(Kind.UNAVAILABLE, str(error), headers={"retry-after": "5"})
        what = str(error) if isinstance(error, BgeError) else "the server's log says why"
        return RequestError(Kind.BACKEND, f"the engine of {self.name} failed: {what}")

    def _result(self, work: Work, tokens: int) -> Embedded:
        outputs = work.outputs
        dense = outputs.dense
        if dense is not None:
            try:
                dense = round_vectors(dense, self.parts.vector_dtype, np.arange(len(dense)))
            except NotFiniteError as error:
                raise RequestError(Kind.BACKEND, str(error)) from error
        return Embedded(dense, outputs.lexical(), outputs.colbert, tokens)


def _is_bulk(kind: TextKind, tokens: int) -> bool:
    """Return whether a request waits in the lane for bulk work."""
    if kind == "passage":
        return True
    return tokens > (_QUERY_TOKENS if kind is None else _MARKED_QUERY_TOKENS)
