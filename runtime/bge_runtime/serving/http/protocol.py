"""uvicorn's HTTP protocol with limits on clients that are slow, or send without end.

uvicorn 0.54 has none: a client that sends its headers slowly or without end, does not send the rest
of a body, or does not read its answer, keeps its connection and memory.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 1 << 16
"""Maximum bytes of a request's line and headers."""

HEADER_TIMEOUT_S = 15.0
"""Seconds from the first byte of a request, or from the connection, to the end of its headers."""

LINGER_S = 10.0
"""Seconds in which the rest of a body is read and dropped after an answer that did not need it,
such as 401 and 413. A connection that is closed before may lose the answer on its way."""

READ_TIMEOUT_S = 120.0
"""Seconds in which a client must read some of its answer, a megabyte or so."""


_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


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
    """Closes connections whose clients are slow, or whose headers are too large."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of a new connection."""
        super().connection_made(transport)
        self.transport: Any = _JoiningTransport(transport, self.loop)
        self._header_bytes = 0
        self._has_begun = self._is_deaf = False
        self._reads_headers = True
        self._header_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop_header_timer()
        for timer in (self._linger_timer, self._reader_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of headers, and pass on what fits."""
        if self._is_deaf:
            return
        if self._reads_headers:
            if b"pgrade:" in data:
                data = _without_upgrade(data)
            self._header_bytes += len(data)
            if self._header_timer is None:
                self._start_header_timer()
        super().data_received(data)
        # Still no end of the headers: all bytes so far were part of them.
        if self._reads_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", "the headers are too large")

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        super().on_message_begin()
        self._reads_headers = self._has_begun = True

    def on_headers_complete(self) -> None:
        """Expect a body of any length, for which the application has limits."""
        self._reads_headers = False
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request; uvicorn limits the time until its first byte."""
        super().on_message_complete()
        self._reads_headers, self._has_begun = True, False
        self._header_bytes = 0
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
            # uvicorn has started this when the answer was sent, and stopped it at the next byte.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Watch that the client reads the answer, and sends the rest of its body."""
        super().on_response_complete()
        transport = self.transport
        transport.flush()
        self._unread_bytes = transport.get_write_buffer_size()
        if self._unread_bytes and self._reader_timer is None:
            self._reader_timer = self.loop.call_later(READ_TIMEOUT_S, self._check_reader)
        if not self._reads_headers and not transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER_S, transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(b"400 Bad Request", msg)

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._end_headers)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _end_headers(self) -> None:
        self._header_timer = None
        if self._is_answering:  # of the next request; this one comes first
            self._start_header_timer()
        elif self._has_begun:
            self._refuse(b"408 Request Timeout", "the headers took too long")
        else:  # an answer without a request would be taken for that of the next one
            self.transport.close()

    def _check_reader(self) -> None:
        transport = self.transport
        before, self._unread_bytes = self._unread_bytes, transport.get_write_buffer_size()
        self._reader_timer = None
        if not self._unread_bytes:
            return
        if self._unread_bytes < before:
            self._reader_timer = self.loop.call_later(READ_TIMEOUT_S, self._check_reader)
        else:
            transport.abort()  # to close it would be to wait for the client

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: bytes, why: str) -> None:
        self._stop_header_timer()
        transport = self.transport
        if transport.is_closing():
            return
        in_body = not self._reads_headers
        if self._is_answering and not in_body:
            # The answer to a request that was complete comes first, and is the last one.
            self.cycle.keep_alive = False
            self._is_deaf = True
            return
        if not self._is_answering or not (self.cycle.response_started or self.pipeline):
            body = b'{"error":"' + why.encode() + b'"}'
            transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
        transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Return the start of a request without its wish for another protocol.

    Java's client has it in its first request. httptools would take the body for that protocol's.
    """
    headers, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nignored:", headers) + end + rest
