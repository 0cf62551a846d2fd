"""HTTP by hand: requests that no client would send, and answers as they come."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Reply:
    """An answer.

    Attributes:
        status: Its status.
        headers: Its headers, by lower-case name.
        body: Its body.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Connection:
    """A connection to a server, to send bytes as they are."""

    def __init__(self, url: str, *, timeout_s: float = 20.0, receive_bytes: int = 0) -> None:
        """Connect; ``receive_bytes`` is the size of the buffer for answers, 0 for the default."""
        parts = urlsplit(url)
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout_s)
        try:
            self.socket.connect((parts.hostname, parts.port))
        except OSError:
            self.socket.close()
            raise
        self._left = b""

    def send(self, data: bytes) -> None:
        """Send bytes; a server that has closed the connection is no error."""
        with contextlib.suppress(OSError):
            self.socket.sendall(data)

    def reply(self, *, head: bool = False) -> Reply | None:
        """Return the next answer, without 100 Continue; None if the connection was closed.

        Args:
            head: Whether it is that to a HEAD request, which has no body.

        Raises:
            AssertionError: If the connection is closed in the middle of an answer.
        """
        while True:
            start = self._until(b"\r\n\r\n")
            if start is None:
                return None
            lines = start.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            if status == 100:
                continue
            length = 0 if head else int(headers["content-length"])
            while len(self._left) < length:
                assert self._read(), "the connection was closed in the middle of an answer"
            body, self._left = self._left[:length], self._left[length:]
            return Reply(status, headers, body)

    def is_closed(self, *, within_s: float) -> bool:
        """Return whether the server closes the connection, without a further byte."""
        self.socket.settimeout(within_s)
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        """Close it."""
        self.socket.close()

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._left:
            if not self._read():
                assert not self._left, f"the connection was closed after {self._left[:200]!r}"
                return None
        found, _, self._left = self._left.partition(end)
        return found

    def _read(self) -> bool:
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        self._left += data
        return bool(data)


@contextlib.contextmanager
def connection(url: str, **options: Any) -> Iterator[Connection]:
    """Connect, and close the connection in the end."""
    opened = Connection(url, **options)
    try:
        yield opened
    finally:
        opened.close()


def post(path: str, body: bytes | str, *headers: str, length: int | None = None) -> bytes:
    """Return a POST request; ``length`` is what it says of its body."""
    data = body.encode() if isinstance(body, str) else body
    said = len(data) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {said}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *headers, "", ""]).encode(
        "latin-1"
    )


def wait_until(condition: Any, *, timeout_s: float = 20.0) -> None:
    """Wait until something is true."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come true"
        time.sleep(0.02)
