"""What all served models have: engines, threads that tokenize, and a place in the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import TextTokenizer
from bge_runtime.errors import BgeError, NotFiniteError
from bge_runtime.models import OpenedModel
from bge_runtime.serving.context import RequestContext, notify, succeed
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.models.admission import Admission
from bge_runtime.serving.options import ServeOptions
from bge_runtime.serving.scheduling import (
    BatchKey,
    Collector,
    EngineGroup,
    EngineParts,
    Scheduler,
    StalledError,
    Work,
    WorkCancelledError,
)
from bge_runtime.serving.statistics import LastMinute

Tokens = NDArray[np.int64]

INLINE_CHARACTERS = 2048
"""Texts up to this length are tokenized without a thread, in half a millisecond: starting one takes
nearly as long, and a query would wait for it."""

TEXT_CHARACTERS = 32
"""Characters that take as long as starting with a text."""

TOKEN_CHARACTERS = 4
"""Characters of a token, about, before texts are tokenized."""

TEXTS_AT_ONCE = 64
"""Texts that are tokenized before a look at whether anybody still waits."""

QUERY_TOKENS = 512
"""Requests of up to this many tokens wait in the lane for queries, unless marked as passages."""

MARKED_QUERY_TOKENS = 8192
"""The same for requests that are marked as queries, and for those of rerankers."""


class ServedParts(EngineParts, Protocol):
    """What is needed of a model's parts."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer."""
        ...


class ServedModel:
    """A model behind a name; the base of those that embed and those that score.

    Attributes:
        KIND: What it is, for messages and the page.
        name: Name under which it is served.
        base_path: Where its routes are, without a slash at the end.
        opened: The model.
        card: What its bundle says of it.
        max_length: Tokens at which texts, or pairs of them, are cut.
        tokenizer: Its tokenizer.
        engines: Its engines.
        last_minute: What it has served lately.
        scheduler: The scheduler of all models, once the server has started.
        threads: Threads that tokenize, for queries and (True) for bulk work.
    """

    KIND: ClassVar[str]

    def __init__(
        self,
        name: str,
        opened: OpenedModel,
        parts: ServedParts,
        options: ServeOptions,
        metrics: Metrics,
        *,
        base_path: str,
        max_length: int,
    ) -> None:
        """Open the engines that the model has not opened yet."""
        self.name, self.base_path, self.opened = name, base_path, opened
        self.card = opened.bundle.manifest.model
        self.max_length = min(max_length, self.card.max_length)
        self.tokenizer = parts.tokenizer
        self.engines = EngineGroup(name, parts, parallel=options.parallel_batches)
        self.last_minute = LastMinute()
        self._options, self._metrics = options, metrics
        self._tokenization_seconds = metrics.tokenization_seconds.labels(name)
        self._queue_seconds = metrics.queue_seconds.labels(name)
        self._inference_seconds = metrics.inference_seconds.labels(name)
        self._admission: Admission
        self.scheduler: Scheduler
        self.threads: dict[bool, ThreadPoolExecutor]

    @property
    def outputs(self) -> list[str]:
        """Names of what it can return for a text."""
        raise NotImplementedError

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs that requests may ask for."""
        raise NotImplementedError

    @property
    def query_instruction(self) -> str | None:
        """What it puts before queries, if anything."""
        raise NotImplementedError

    async def probe(self, context: RequestContext) -> None:
        """Compute a short text, to find out whether the engines answer.

        Raises:
            RequestError: If they do not.
        """
        raise NotImplementedError

    @property
    def trouble(self) -> str | None:
        """What was last wrong with the engines; None if they answer."""
        stalled_s = self.scheduler.stalled(self.engines)
        return self.engines.failed if stalled_s is None else self._stalled(stalled_s)

    @property
    def room_tokens(self) -> int:
        """Tokens that may wait."""
        return self._admission.room_tokens

    def start(self, scheduler: Scheduler) -> None:
        """Start the threads that tokenize, and compute a batch on each engine."""
        self.scheduler = scheduler
        self._admission = Admission(
            self.engines, scheduler, max_queued_tokens=self._options.max_queued_tokens
        )
        self.threads = {
            bulk: ThreadPoolExecutor(1, thread_name_prefix="bge-tokenize") for bulk in (False, True)
        }
        self.engines.warm_up(self.graph_outputs)

    def close(self) -> None:
        """End the threads that tokenize."""
        for threads in self.threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

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

    def _check_engines(self) -> None:
        stalled_s = self.scheduler.stalled(self.engines)
        if stalled_s is not None:
            raise RequestError(
                Kind.UNAVAILABLE, self._stalled(stalled_s), headers={"retry-after": "5"}
            )

    def _stalled(self, seconds: float) -> str:
        return f"the engine of {self.name} has not answered for {seconds:.0f} s"

    def _admit(self, tokens: int, *, bulk: bool) -> None:
        try:
            self._admission.check(tokens, bulk=bulk)
        except RequestError:
            self._metrics.rejected.labels(self.name).inc()
            raise

    async def _tokenize_in_parts(
        self,
        texts: Sequence[str],
        context: RequestContext,
        tokenize: Callable[[Sequence[str], int], list[Tokens]],
        *,
        about: int,
        bulk: bool,
        beside: int = 0,
    ) -> list[Tokens]:
        """Return the tokens of texts, made in a thread if that takes long.

        Args:
            texts: The texts.
            context: The request.
            tokenize: Returns the tokens of some of the texts, and is told which is the first.
            about: Tokens of all of them, about.
            bulk: The lane in which they will wait.
            beside: Characters that are tokenized beside the texts.

        Raises:
            RequestError: If there is no room for them, or ``tokenize`` raises ``ValueError``.
        """
        # What has no room in the queue is refused before its texts are tokenized.
        self._admit(about, bulk=bulk)

        def tokenize_all() -> list[Tokens]:
            rows: list[Tokens] = []
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                context.check()
                rows += tokenize(texts[start : start + TEXTS_AT_ONCE], start)
            return rows

        characters = sum(map(len, texts)) + beside
        try:
            if characters + TEXT_CHARACTERS * len(texts) <= INLINE_CHARACTERS:
                return tokenize_all()
            with self._admission.tokenizing(about, bulk=bulk):
                return await context.run(self.threads[bulk], tokenize_all)
        except ValueError as error:
            raise RequestError(Kind.INVALID, str(error), param="input") from error

    def _note_tokens(
        self, tokens: Sequence[Tokens], truncated: int, started_s: float, context: RequestContext
    ) -> None:
        """Keep count of what was tokenized, and check the tokens of the request."""
        context.truncated = truncated
        context.tokenize_s = time.monotonic() - started_s
        self._tokenization_seconds.observe(context.tokenize_s)
        if truncated:
            self._metrics.truncated.labels(self.name).inc(truncated)
        context.tokens = sum(map(len, tokens))
        self.check_tokens(context.tokens)

    async def _compute(
        self,
        tokens: Sequence[Tokens],
        collector: Collector,
        context: RequestContext,
        *,
        outputs: tuple[str, ...],
        prefix: Tokens | None,
        bulk: bool,
    ) -> None:
        """Queue the texts of a request, and return when all their outputs are collected.

        Args:
            tokens: Token ids of each text.
            collector: Receives the outputs.
            context: The request.
            outputs: Names of the graph's outputs.
            prefix: Tokens that the texts probably begin with.
            bulk: Wait in the lane for bulk work.

        Raises:
            RequestError: If an engine fails, or the time is up.
            ClientLeftError: If the client leaves.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[None] = loop.create_future()
        work = Work(
            BatchKey(self.engines, outputs, b"" if prefix is None else prefix.tobytes()),
            tokens,
            collector,
            bulk=bulk,
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
