"""Servers in processes of their own, as ``bge-serve`` starts them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httpx

START_TIMEOUT_S = 120.0
"""Seconds for a server to start, on a machine that runs other tests meanwhile."""


@dataclass
class Server:
    """A server that runs.

    Attributes:
        process: Its process.
        url: Its address.
        client: A client for it.
        lines: Lines of its standard error so far.
    """

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client
    lines: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        return "".join(self.lines)


@contextlib.contextmanager
def running_server(
    *arguments: object, environment: Mapping[str, str] | None = None, program: str | None = None
) -> Iterator[Server]:
    """Start a server, yield it once it accepts requests, and stop it.

    Args:
        *arguments: Models and options of ``bge-serve``.
        environment: Further environment variables.
        program: Python code to run in place of ``bge-serve``, which reports its address likewise.
    """
    code = program or "from bge_runtime.cli.serve import main; main()"
    # The last one of an option counts, so that a test may ask for a port.
    command = [sys.executable, "-c", code, "--port", "0", *map(str, arguments)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    lines: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        listening.wait(START_TIMEOUT_S)
        found = re.search(r"listening on (http://\S+)", "".join(lines))
        assert found is not None, f"the server did not start:\n{''.join(lines)}"
        with httpx.Client(base_url=found[1], timeout=60.0) as client:
            yield Server(process, found[1], client, lines)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=10)
        if process.stderr is not None and not reader.is_alive():
            process.stderr.close()
