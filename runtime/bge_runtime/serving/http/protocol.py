"""uvicorn's HTTP protocol with limits on the time and the size of a request's headers.

uvicorn 0.54 has neither: a client that sends its headers slowly, or without end, keeps its
connection and memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 1 << 16
"""Maximum bytes of a request's line and headers."""

HEADER_TIMEOUT_S = 15.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers."""


class _JoiningTransport:
    """A transport that sends what is written in one step of the event loop at once.

    uvicorn writes the headers of an answer and its body one after the other. A call of the system
    for each takes twice as long, a tenth of what a request costs apart from its batches.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            if not self._transport.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class LimitedProtocol(HttpToolsProtocol):
    """Closes connections whose headers take too long, or are too large."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of a new connection."""
        super().connection_made(transport)
        self.transport: Any = _JoiningTransport(transport, self.loop)
        self._header_bytes = 0
        self._reads_headers = True
        self._header_timer: asyncio.TimerHandle | None = None
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of headers, and pass on what fits."""
        if self._reads_headers:
            self._header_bytes += len(data)
            if self._header_timer is None:
                self._start_header_timer()
        super().data_received(data)
        # Still no end of the headers: all bytes so far were part of them.
        if self._reads_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", b"the headers are too large")

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        super().on_message_begin()
        self._reads_headers = True

    def on_headers_complete(self) -> None:
        """Expect a body of any length, for which the application has limits."""
        self._reads_headers = False
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request; uvicorn limits the time until its first byte."""
        super().on_message_complete()
        self._reads_headers = True
        self._header_bytes = 0

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(
            HEADER_TIMEOUT_S,
            self._refuse,
            b"408 Request Timeout",
            b"the headers took too long",
        )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _refuse(self, status: bytes, why: bytes) -> None:
        self._header_timer = None
        transport: Any = self.transport
        if transport.is_closing():
            return
        body = b'{"error":"' + why + b'"}'
        transport.write(
            b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        transport.close()
