"""From an ASGI request to a handler, and from its answer, or its error, to the response."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import msgspec

from bge_runtime.serving.context import ClientLeftError, Receive, RequestContext
from bge_runtime.serving.errors import Kind, RequestError
from bge_runtime.serving.http.access_log import log_request
from bge_runtime.serving.http.dialects import Dialect, error_body
from bge_runtime.serving.metrics import Metrics
from bge_runtime.serving.options import ServeOptions

logger = logging.getLogger("bge_runtime.serving")

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
"""Request ids that are taken over. Others would allow a client to forge lines of the log."""

_MILLISECONDS = re.compile(r"\d*\.?\d+", re.ASCII)
"""What ``x-request-timeout-ms`` may be."""

_CLIENT_LEFT = 499
"""Status in logs and metrics for a client that has closed its connection, as nginx has it."""


class Answer(NamedTuple):
    """A response.

    Attributes:
        content: Its body.
        media_type: What the body is.
        status: Its status.
        headers: Further headers.
    """

    content: bytes
    media_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = {}


Handler = Callable[[Any, RequestContext], Awaitable[Answer]]
"""Answers a request: its parsed body (None without one), and its context."""


class Gate:
    """What all endpoints of a server share: options, metrics, keys, and whether it is stopping.

    Attributes:
        options: The server's options.
        metrics: The server's metrics.
        draining: Whether the server is stopping.
        on_answer: Is told of the model and seconds of each request, and of its status, whichever
            one its dialect has for it.
        count_batches: Brings the metrics of batches up to date.
        trace: Returns a context for a request's ASGI scope, route and state.
    """

    def __init__(self, options: ServeOptions, metrics: Metrics) -> None:
        """Start as not stopping."""
        self.options, self.metrics = options, metrics
        self.draining = False
        self.on_answer: Callable[[str, float, int], object] = lambda *_: None
        self.count_batches: Callable[[], object] = lambda: None
        self.trace: Callable[[Scope, str, RequestContext], AbstractContextManager[object]] = (
            lambda *_: nullcontext()
        )
        # Hashes have one length, and comparing them tells nothing of the keys.
        self._keys = [hashlib.sha256(key.encode()).digest() for key in options.api_keys]

    def check_key(self, headers: Mapping[bytes, bytes], token_in_body: str | None = None) -> None:
        """Check the key of a request.

        Args:
            headers: The request's headers.
            token_in_body: What its body has in place of a header: Qdrant sends no headers.

        Raises:
            RequestError: If keys are required, and the request has none of them.
        """
        if not self._keys:
            return
        token = _key_in(headers)
        if token is None:
            token = (token_in_body or "").encode()
        digest = hashlib.sha256(token.strip()).digest()
        # All keys are compared, whichever of them fits.
        if sum(hmac.compare_digest(digest, key) for key in self._keys):
            return
        raise RequestError(
            Kind.UNAUTHORIZED,
            "the API key is not one of this server's"
            if token
            else "an API key is missing: send the header `Authorization: Bearer KEY`",
            headers={"www-authenticate": "Bearer"},
        )


def _key_in(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the key that the headers of a request have; None if they have none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token
    return headers.get(b"x-api-key", headers.get(b"api-key"))


class Endpoint:
    """An ASGI application that answers one route."""

    def __init__(
        self,
        gate: Gate,
        route: str,
        handler: Handler,
        *,
        body: Any = None,
        dialect: Dialect = Dialect.PLAIN,
        is_open: bool = False,
        model: str = "",
    ) -> None:
        """Prepare the route.

        Args:
            gate: What all endpoints share.
            route: Its path, for metrics and logs.
            handler: Answers a request.
            body: Type of its body; None for no body.
            dialect: Form of its errors, unless the handler finds another one in the body.
            is_open: Answer without a key, and while the server is stopping.
            model: The model of its path, for what is refused before a handler has found the model.
        """
        self._gate, self._route, self._handler = gate, route, handler
        self._dialect, self._is_open, self._model = dialect, is_open, model
        # Numbers and booleans may be strings, as some clients send them.
        self._decode = None if body is None else msgspec.json.Decoder(body, strict=False).decode
        self._has_token = "token" in getattr(body, "__struct_fields__", ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = dict(scope["headers"])
        context = self._context(headers, receive)
        with self._gate.trace(scope, self._route, context):
            try:
                answer: Answer | None = await self._answer(headers, receive, context, scope)
            except RequestError as error:
                context.error = error.kind
                status, body = error_body(context.dialect or self._dialect, error)
                answer = Answer(body, status=status, headers=error.headers)
            except asyncio.CancelledError:
                # uvicorn cancels what is not answered within the drain timeout.
                if not self._gate.draining:
                    raise
                context.error = Kind.UNAVAILABLE
                stopped = RequestError(Kind.UNAVAILABLE, "the server has stopped")
                answer = Answer(
                    error_body(context.dialect or self._dialect, stopped)[1], status=503
                )
            except ClientLeftError:
                self._gate.metrics.cancelled.labels(context.model).inc()
                answer = None
            except Exception:
                context.error = Kind.BACKEND
                logger.exception("request %s to %s failed", context.request_id, self._route)
                unknown = RequestError(Kind.BACKEND, "the server failed; its log says why")
                answer = Answer(
                    error_body(context.dialect or self._dialect, unknown)[1], status=500
                )
            context.status = _CLIENT_LEFT if answer is None else answer.status
            if answer is not None:
                await self._send(answer, context, send)
        self._note(context)

    async def _answer(
        self,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        context: RequestContext,
        scope: Scope,
    ) -> Answer:
        if not self._is_open:
            if self._gate.draining:
                raise RequestError(
                    Kind.UNAVAILABLE, "the server is stopping", headers={"retry-after": "1"}
                )
            # Without a key in its headers, a request of Qdrant may have one in its body.
            if not self._has_token or _key_in(headers) is not None:
                self._gate.check_key(headers)
        self._limit_time(headers, context)
        if self._decode is None:
            return await self._handler(scope.get("path_params"), context)
        try:
            body = self._parse(await self._read_body(headers, receive))
        except RequestError:
            self._gate.check_key(headers)  # what is wrong is told to those with a key
            raise
        if self._has_token:
            self._gate.check_key(headers, body.token)
        return await self._handler(body, context)

    def _context(self, headers: Mapping[bytes, bytes], receive: Receive) -> RequestContext:
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not _ID.fullmatch(request_id):
            request_id = os.urandom(16).hex()
        timeout_s = self._gate.options.request_timeout_s
        context = RequestContext(request_id, self._route, receive, timeout_s=timeout_s)
        context.model = self._model
        return context

    def _limit_time(self, headers: Mapping[bytes, bytes], context: RequestContext) -> None:
        """Give a request the time that it asks for, within the server's own limit."""
        header = headers.get(b"x-request-timeout-ms")
        if header is None:
            return
        asked = header.decode("latin-1")
        if not _MILLISECONDS.fullmatch(asked) or not float(asked):
            raise RequestError(
                Kind.INVALID,
                f"x-request-timeout-ms is {asked[:100]!r}; send a number of milliseconds above 0",
                param="x-request-timeout-ms",
            )
        context.limit_time(float(asked) / 1000)

    async def _read_body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        limit = self._gate.options.max_body_bytes
        too_large = RequestError(
            Kind.TOO_LARGE,
            f"the body has more than {limit:,} bytes, which is the limit of a request. Send it in "
            "parts",
        )
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._gate.options.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise RequestError(
                Kind.BODY_TIMEOUT,
                f"the body did not arrive within {self._gate.options.body_timeout_s:g} s",
                headers={"connection": "close"},
            ) from None

    def _parse(self, body: bytes) -> Any:
        """Return a parsed body.

        No thread would help: msgspec holds Python's lock until it is done, 11 ms for 28 MB of text.
        """
        assert self._decode is not None
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise RequestError(Kind.INVALID, f"the body is not as expected: {error}") from error
        except msgspec.DecodeError as error:
            raise RequestError(Kind.INVALID, f"the body is not valid JSON: {error}") from error
        except UnicodeDecodeError as error:
            raise RequestError(Kind.INVALID, f"the body is not UTF-8: {error}") from error
        except RecursionError as error:
            raise RequestError(Kind.INVALID, "the body is nested too deeply") from error

    async def _send(self, answer: Answer, context: RequestContext, send: Send) -> None:
        headers = [
            (b"content-type", answer.media_type.encode()),
            (b"content-length", b"%d" % len(answer.content)),
            (b"x-request-id", context.request_id.encode()),
        ]
        if context.tokens:
            headers += [
                (b"x-total-time", b"%.1f" % (1000 * context.elapsed_s)),
                (b"x-queue-time", b"%.1f" % (1000 * context.queue_s)),
                (b"x-inference-time", b"%.1f" % (1000 * context.compute_s)),
            ]
        if context.truncated:
            headers.append((b"x-truncated-inputs", b"%d" % context.truncated))
        if self._gate.draining and "connection" not in answer.headers:
            headers.append((b"connection", b"close"))
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.content})

    def _note(self, context: RequestContext) -> None:
        seconds, status = context.elapsed_s, context.status
        count, duration = self._gate.metrics.of_request(context.model, self._route, status)
        count.inc()
        duration.observe(seconds)
        if context.error is Kind.DEADLINE:
            self._gate.metrics.late.labels(context.model).inc()
        if context.model:
            error = context.error
            self._gate.on_answer(context.model, seconds, error.status if error else status)
        log_request(context)
