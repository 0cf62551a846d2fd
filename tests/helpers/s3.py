"""A server of S3's protocol on the loopback, and a network before it that fails as a test says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

BUCKET = "bucket"


@dataclass
class Network:
    """Passes connections to a server, and fails as it is told.

    Attributes:
        port: Where it listens.
        refuse: Whether connections are closed at once.
        cut_after: Bytes from a client after which all its connections are cut, once; None never.
        cuts: Number of connections that were cut or refused.
    """

    server_port: int
    refuse: bool = False
    cut_after: int | None = None
    cuts: int = 0
    port: int = 0
    _passed: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Listen."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        """Listen no longer."""
        self._listener.close()

    def uri(self, name: str) -> str:
        """Return the URI of a folder in the bucket."""
        return (
            f"s3://{BUCKET}/{name}?region=us-east-1&scheme=http&allow_bucket_creation=true&"
            f"endpoint_override=127.0.0.1:{self.port}"
        )

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if self.refuse:
            self.cuts += 1
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.server_port))
        except OSError:
            client.close()
            return
        with client, server:
            back = threading.Thread(target=self._pass, args=(server, client, False), daemon=True)
            back.start()
            self._pass(client, server, True)
            back.join()

    def _pass(self, source: socket.socket, to: socket.socket, sent: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.refuse or (sent and self._is_cut(len(data))):
                    to.sendall(data[: len(data) // 2])
                    break
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_cut(self, size: int) -> bool:
        with self._lock:
            self._passed += size
            if self.cut_after is None or self._passed < self.cut_after:
                return False
            self.cut_after, self._passed = None, 0
            self.cuts += 1
            return True

    def cut(self, after_bytes: int) -> None:
        """Cut one connection once clients have sent so many bytes."""
        with self._lock:
            self._passed, self.cut_after = 0, after_bytes


@contextlib.contextmanager
def s3_network() -> Iterator[Network]:
    """Start a server that keeps a bucket in memory, and a network before it."""
    pytest.importorskip("flask")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    network = Network(port)
    network.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "a-key-that-is-secret")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        yield network
    network.stop()
    server.stop()
