"""What is known of one HTTP request while it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from bge_runtime.serving.errors import Kind, RequestError

if TYPE_CHECKING:
    from bge_runtime.serving.http import Dialect

T = TypeVar("T")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_WATCH_AFTER_S = 1.0
"""Seconds after which a client is watched. Watching takes a task, a tenth of what a request costs
apart from its batches, and most are answered before."""


class ClientLeftError(Exception):
    """The client has closed its connection."""


class RequestContext:
    """One request, from its arrival to its answer.

    Attributes:
        request_id: Its id, the client's own or a new one.
        route: The route's path, for metrics and logs.
        started_s: When it arrived.
        deadline_s: Time after which nobody waits for it.
        model: Name of the model that answers it; empty if none does.
        status: The status of its answer; 0 before.
        dialect: Form of its errors, where its body decides about that; None for its route's.
        error: What was wrong with it, or with the server; None if nothing was.
        texts: Its texts.
        tokens: Their tokens after truncation.
        truncated: How many of them were truncated.
        tokenize_s: Seconds for tokenizing.
        queue_s: Seconds in the queue.
        compute_s: Seconds from the first batch to the last result.
        is_over: Whether nobody waits for the answer any more.
    """

    __slots__ = (
        "_receive",
        "compute_s",
        "deadline_s",
        "dialect",
        "error",
        "is_over",
        "model",
        "queue_s",
        "request_id",
        "route",
        "started_s",
        "status",
        "texts",
        "timeout_s",
        "tokenize_s",
        "tokens",
        "truncated",
    )

    def __init__(self, request_id: str, route: str, receive: Receive, *, timeout_s: float) -> None:
        """Start the request's clock."""
        self.request_id, self.route, self._receive = request_id, route, receive
        self.started_s = time.monotonic()
        self.timeout_s = timeout_s
        self.deadline_s = self.started_s + timeout_s
        self.model = ""
        self.status = 0
        self.dialect: Dialect | None = None
        self.error: Kind | None = None
        self.is_over = False
        self.texts = self.tokens = self.truncated = 0
        self.tokenize_s = self.queue_s = self.compute_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.started_s

    def limit_time(self, seconds: float) -> None:
        """Give the request less time than it has."""
        self.timeout_s = min(self.timeout_s, seconds)
        self.deadline_s = self.started_s + self.timeout_s

    def check(self) -> None:
        """Check that somebody waits for the answer, before work is spent on it.

        Raises:
            RequestError: If the deadline has passed.
            ClientLeftError: If the client has left.
        """
        if time.monotonic() >= self.deadline_s:
            raise self.late()
        if self.is_over:
            raise ClientLeftError

    def late(self) -> RequestError:
        """Return the error of a request that took too long."""
        return RequestError(
            Kind.DEADLINE,
            f"no answer within {self.timeout_s:g} s. Send fewer texts, try again when the server "
            "is less busy, or allow more time: the header x-request-timeout-ms, up to the "
            "server's --request-timeout",
        )

    async def run(self, executor: Executor, call: Callable[[], T]) -> T:
        """Return what a call in another thread returns, for as long as the client waits.

        Raises:
            RequestError: If the deadline passes.
            ClientLeftError: If the client closes its connection.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                self.check()
                value = call()
            except Exception as error:  # noqa: BLE001  # raised in the caller's thread
                notify(loop, fail, result, error)
            except BaseException as error:  # a panic of Rust in tokenizers is no Exception
                notify(loop, fail, result, RuntimeError(f"{type(error).__name__}: {error}"))
                raise
            else:
                notify(loop, succeed, result, value)

        executor.submit(work)
        return await self.wait(result, watch=True)

    async def wait(self, result: asyncio.Future[T], *, watch: bool = False) -> T:
        """Wait for a result, for as long as the client does.

        Args:
            result: The result.
            watch: Watch the client from the beginning.

        Raises:
            RequestError: If the deadline passes.
            ClientLeftError: If the client closes its connection.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle
        watcher: asyncio.Task[None] | None = None

        def look() -> None:
            nonlocal timer, watcher
            remaining_s = self.deadline_s - time.monotonic()
            if remaining_s <= 0:
                fail(result, self.late())
                return
            if watcher is None:
                watcher = loop.create_task(self._watch(result))
            timer = loop.call_later(remaining_s, look)

        remaining_s = max(0.0, self.deadline_s - time.monotonic())
        timer = loop.call_later(0 if watch else min(_WATCH_AFTER_S, remaining_s), look)
        try:
            return await result
        except BaseException:
            self.is_over = True
            raise
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()

    async def _watch(self, result: asyncio.Future[T]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while (await self._receive())["type"] != "http.disconnect":
                pass
            fail(result, ClientLeftError())


def notify(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> None:
    """Call a function in the thread of an event loop, from any thread; not if it is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


def succeed(result: asyncio.Future[T], value: T) -> None:
    """Give a future its value, unless it has failed already."""
    if not result.done():
        result.set_result(value)


def fail(result: asyncio.Future[T], error: Exception) -> None:
    """Give a future an error, unless it has a result already."""
    if not result.done():
        result.set_exception(error)
