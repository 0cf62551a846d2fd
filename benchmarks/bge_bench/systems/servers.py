"""Start HTTP servers of embeddings: bge-serve, and those that it is compared with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil

from bge_bench.errors import BenchError

OURS = "bge-serve"
PLAIN = "plain"
INFINITY = "infinity"
SERVERS = (OURS, PLAIN, INFINITY)

INFINITY_ENGINES = MappingProxyType(
    {
        "ctranslate2": ("fp32", ("ctranslate2", "--no-compile", "--no-model-warmup")),
        "optimum": ("fp32", ("optimum", "--no-model-warmup")),
        "torch": ("fp32", ("torch", "--no-compile", "--no-model-warmup")),
        "torch-bf16": (
            "bf16",
            ("torch", "--no-compile", "--no-model-warmup", "--dtype", "bfloat16"),
        ),
        "torch-compiled": ("fp32", ("torch", "--compile")),
    }
)
"""Precision and options of each of infinity's engines, but for int8, which needs another file.

Their warm-up computes the longest batches for half a minute, to print how fast that was.
"""

# As its script does it, which an environment need not have on its path.
_BGE_SERVE = "from bge_runtime.cli.serve import main; main(prog_name='bge-serve')"
_MODEL = "bench"
_FAREWELL_S = 20.0
_SAMPLE_S = 0.5
_TAIL_LINES = 12


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """How to start a server.

    Attributes:
        label: Unique name of the server in a run.
        system: One of `SERVERS`.
        model: Folder of the bundle, or for infinity of what `infinity_folder` made.
        threads: Threads to compute with.
        device: ``"cpu"``, or a GPU's name such as ``"cuda:0"``.
        precision: Precision of bge-serve and the plain server; ``"auto"`` is their default.
        engine: One of `INFINITY_ENGINES`, for infinity.
        environment: Folder of infinity's virtual environment.
        options: Further options of the command.
        start_s: Longest wait for the server to be ready.
    """

    label: str
    system: str
    model: str
    threads: int
    device: str = "cpu"
    precision: str = "auto"
    engine: str | None = None
    environment: str | None = None
    options: tuple[str, ...] = ()
    start_s: float = 180.0

    @property
    def ours(self) -> bool:
        """Whether it is bge-serve."""
        return self.system == OURS

    @property
    def path(self) -> str:
        """Path of the route that answers as OpenAI's."""
        return "/embeddings" if self.system == INFINITY else "/v1/embeddings"

    def body(self, texts: str | Sequence[str], *, query: str | None = None) -> dict[str, Any]:
        """Return the body of a request.

        Args:
            texts: The text, or texts.
            query: Instruction of a search query, for a text that is one. bge-serve adds its own;
                the others know none, and get it with the text.
        """
        body: dict[str, Any] = {"model": _MODEL, "encoding_format": "base64", "input": texts}
        if query is None:
            return body
        return body | ({"input_type": "query"} if self.ours else {"input": query.format(texts)})

    def command(self, port: int) -> list[str]:
        """Return the command that serves on a port of this machine."""
        own = [sys.executable, "-W", "ignore"]
        threads = str(self.threads)
        if self.system == PLAIN:
            given = [self.model, str(port), self.device, self.precision, threads]
            return [*own, "-m", "bge_bench.systems.plain_server", *given]
        if self.system == OURS:
            served = [f"{self.model}={_MODEL}", "--port", str(port), "--log-level", "warning"]
            given = ["--device", self.device, "--threads", threads, "--precision", self.precision]
            return [*own, "-c", _BGE_SERVE, *served, *given, *self.options]
        assert self.engine is not None
        assert self.environment is not None
        program = str(Path(self.environment).absolute() / "bin" / "infinity_emb")
        of_engine = INFINITY_ENGINES[self.engine][1]
        # It finds the graph of a folder only beside the folder's other files, and only from there.
        model = "." if self.engine == "optimum" else self.model
        device = self.device.partition(":")[0]
        given = ["--model-id", model, "--served-model-name", _MODEL, "--device", device]
        where = ("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning")
        return [program, "v2", *given, *where, "--engine", *of_engine, *self.options]


class Server:
    """A running server; use it in a ``with`` statement.

    Attributes:
        spec: How it was started.
        url: Its address, without a path.
        peak_bytes: Most memory that it and its processes have held, sampled twice a second.
    """

    def __init__(self, spec: ServerSpec) -> None:
        """Start the server, and wait until it is ready.

        Raises:
            BenchError: If it ends, or is not ready in time.
        """
        self.spec = spec
        self.peak_bytes = 0
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        # A file, because a full pipe that nobody reads would block the server.
        self._output = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115
        self._home = tempfile.TemporaryDirectory(prefix="bge-bench-server-")
        self._process = subprocess.Popen(  # noqa: S603  # the systems of a comparison
            spec.command(port),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            cwd=spec.model,
            env={**os.environ, **self._environment()},
            start_new_session=True,
        )
        self._watched = psutil.Process(self._process.pid)
        self._ended = threading.Event()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _environment(self) -> dict[str, str]:
        """Return what keeps a server off the network, and what infinity caches out of the way."""
        offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        if self.spec.system != INFINITY:
            return offline
        threads = str(self.spec.threads)
        return {
            **offline,
            "HF_HOME": self._home.name,
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "OMP_NUM_THREADS": threads,
            "PYTHONPATH": "",
        }

    def facts(self) -> dict[str, str]:
        """Return the name, precision and description of what runs the model."""
        spec = self.spec
        if spec.system == INFINITY:
            assert spec.engine is not None
            precision, options = INFINITY_ENGINES[spec.engine]
            name = f"infinity {_infinity_version(spec)}"
            told = f"engine {' '.join(options)}, {precision}, {spec.threads} threads, batches of 32"
            return {"name": name, "precision": precision, "in_force": told}
        if spec.system == PLAIN:
            said = json.loads(self._get("/health"))
            return {"name": "Starlette handler around FlagModel.encode", **said}
        stats = json.loads(self._get("/ui/stats"))
        engine = stats["models"][0]["engine"]
        told = f"{engine['engine']} {engine['version']} on {engine['device']}, "
        told += f"{engine['precision']}, variant {engine['variant']}, {engine['threads']} threads"
        name = f"bge-serve {stats['version']}"
        return {"name": name, "precision": engine["precision"], "in_force": told}

    def memory_bytes(self) -> int:
        """Return the resident memory of the server and its processes."""
        return sum(_each(self._watched, lambda process: process.memory_info().rss))

    def cpu_seconds(self) -> float:
        """Return the processor time that the server and its processes have used."""
        spent = _each(self._watched, lambda process: process.cpu_times())
        return float(sum(times.user + times.system for times in spent))

    def stop(self) -> None:
        """End the server and its processes."""
        self._ended.set()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_S)
                break
        self._output.close()
        self._home.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        deadline = time.perf_counter() + self.spec.start_s
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise BenchError(
                    f"the server {self.spec.label} ended with {self._process.returncode} "
                    f"before it was ready{self._tail()}"
                )
            with contextlib.suppress(OSError):
                self._get("/health")
                return
            time.sleep(0.1)
        raise BenchError(
            f"the server {self.spec.label} was not ready within {self.spec.start_s:.0f} s"
            f"{self._tail()}"
        )

    def _get(self, path: str) -> bytes:
        # Without the proxies that an environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=5) as response:
            content: bytes = response.read()
        return content

    def _tail(self) -> str:
        self._output.seek(0)
        lines = [line.rstrip() for line in self._output.read().split("\n") if line.strip()]
        tail = lines[-_TAIL_LINES:]
        return "; its last words:\n" + "\n".join(f"    {line}" for line in tail) if tail else ""

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, self.memory_bytes())


def infinity_folder(bundle: Path, checkpoint: Path, folder: Path) -> Path:
    """Link what infinity reads into a folder: the checkpoint, its settings, and the ONNX graph.

    Args:
        bundle: Folder of the bundle, which has what sentence-transformers reads beside weights.
        checkpoint: Folder of its checkpoint.
        folder: New folder.
    """
    folder.mkdir(parents=True)
    graph = bundle / "onnx"
    files = [*checkpoint.iterdir(), *bundle.iterdir(), *graph.glob("model.onnx*")]
    for file in files:
        link = folder / file.name
        if file.suffix != ".npz" and file.name not in ("onnx", "openvino") and not link.exists():
            link.symlink_to(file.absolute())
    return folder


def infinity_unavailable_reason(environment: Path) -> str | None:
    """Return why infinity cannot be started from a virtual environment; None if it can."""
    if (environment / "bin" / "infinity_emb").exists():
        return None
    return f"there is no infinity in {environment}; `make infinity` installs it"


def _infinity_version(spec: ServerSpec) -> str:
    assert spec.environment is not None
    (found,) = Path(spec.environment).glob("lib/python*/site-packages/infinity_emb-*.dist-info")
    return found.name.removeprefix("infinity_emb-").removesuffix(".dist-info")


def _each(process: psutil.Process, ask: Any) -> list[Any]:
    """Return the answers of a process and its children, without those that have ended."""
    answers = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                answers.append(ask(each))
    return answers


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
