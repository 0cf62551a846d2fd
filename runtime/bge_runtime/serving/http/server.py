"""Run the application with uvicorn: start, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from bge_runtime.errors import BgeError
from bge_runtime.serving.http.endpoint import Gate
from bge_runtime.serving.http.protocol import LimitedProtocol

logger = logging.getLogger("bge_runtime.serving")

_SWITCH_S = 0.0005
"""Python's switch interval while serving. At its default of 5 ms, an engine's thread that has a
result waits that long for a thread that parses or writes JSON."""

_LAST_REQUESTS_S = 0.25
"""Seconds in which connections may still bring a request, after the server was told to stop. Each
answer then closes its connection."""


class _Server(uvicorn.Server):
    """uvicorn's server, which drains, and ends with status 0 where it was told to stop."""

    def __init__(
        self, config: uvicorn.Config, gate: Gate, on_ready: Callable[[str], None] | None
    ) -> None:
        super().__init__(config)
        self._gate, self._on_ready = gate, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gate.draining = True
        logger.info("stopping: answering what was accepted")
        if not self.force_exit:
            for server in self.servers:
                for each in server.sockets:
                    _refuse_connections(each.fileno())
            await asyncio.sleep(_LAST_REQUESTS_S)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves this out then, and logs that it was cancelled
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first SIGTERM or SIGINT, and at once at the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: object) -> None:  # noqa: ARG002
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def _refuse_connections(descriptor: int) -> None:
    """Let a listening socket take no further connections, but hand out those that it has.

    To close it would reset connections that clients have opened, and have sent requests on.
    """
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        copy.listen(0)


def run_server(
    app: Starlette, *, host: str, port: int, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve an application until SIGTERM or SIGINT.

    Then no further connection is accepted, requests that were accepted are answered, and those
    that are not within the drain timeout are dropped.

    Args:
        app: What `create_app` returned.
        host: Address to bind to.
        port: Port; 0 for any that is free.
        on_ready: Receives the server's URL once it accepts requests.

    Raises:
        BgeError: If the server cannot be started.
    """
    gate: Gate = app.state.gate
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=LimitedProtocol,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(0.1, gate.options.drain_timeout_s - _LAST_REQUESTS_S),  # type: ignore[arg-type]
    )
    server = _Server(config, gate, on_ready)
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say that it failed; it has logged why
        if server.lifespan.should_exit:
            raise BgeError("the server did not start; the lines above say why") from None
        raise BgeError(f"cannot listen on {host}, port {port}; the line above says why") from None
    finally:
        sys.setswitchinterval(before)
