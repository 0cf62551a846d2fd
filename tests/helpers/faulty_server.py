"""A server whose engine fails, hangs or computes slowly when a test says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from tests.helpers.servers import Server, running_server

MARKS = {"nan": "~", "raise": "^", "memory": "|"}
"""Texts with such a character have a vector that is NaN, or fail."""

REOPEN_S = 2.0
"""Seconds after which engines are opened again once more."""

_PROGRAM = """
import json, os, pathlib, time
import numpy as np
from bge_runtime.engines import ort_cpu
from bge_runtime.errors import InferenceError, OutOfMemoryError

folder = pathlib.Path(os.environ["FAULTS"])
marks = json.loads(os.environ["MARKS"])
run = ort_cpu.OrtCpuEngine.run

def faulty(self, ids, mask, outputs, **options):
    with (folder / "runs").open("a") as log:
        log.write(f"{len(ids)} {int(mask.sum())}\\n")
    while (folder / "hang").exists():
        time.sleep(0.01)
    if (folder / "slow").exists():
        time.sleep(float((folder / "slow").read_text()) * mask.sum())
    if (folder / "broken").exists():
        raise InferenceError("the engine is broken")
    if (folder / "crash").exists():
        (folder / "crash").unlink()
        raise InferenceError("the engine has crashed")
    if (ids == marks["raise"]).any():
        raise InferenceError("the engine does not like this text")
    if (ids == marks["memory"]).any() or (folder / "memory").exists() and len(ids) > 4:
        raise OutOfMemoryError("out of memory")
    found = list(run(self, ids, mask, outputs, **options))
    found[0] = found[0].copy()
    found[0][(ids == marks["nan"]).any(axis=1)] = np.nan
    return found

ort_cpu.OrtCpuEngine.run = faulty
from bge_runtime.serving.scheduling import execution
execution._REOPEN_S = float(os.environ["REOPEN_S"])
from bge_runtime.cli.serve import main
main()
"""


class FaultyServer:
    """A server, and the switches of its engine.

    Attributes:
        server: The server.
        folder: Where a file is a switch.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        """Keep the parts."""
        self.server, self.folder = server, folder

    @contextlib.contextmanager
    def switched(self, name: str, value: object = "") -> Iterator[None]:
        """Turn something on: hang, slow (seconds for a token), broken, crash (once), memory."""
        path = self.folder / name
        path.write_text(str(value))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Texts and tokens of each run of the engine so far."""
        lines = (self.folder / "runs").read_text().splitlines()
        return [(int(rows), int(tokens)) for rows, tokens in map(str.split, lines)]

    def metric(self, name: str) -> float:
        """Return a value of ``/metrics``, such as ``bge_queued_tokens{lane="bulk"}``."""
        for line in self.server.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0


@contextlib.contextmanager
def faulty_server(bundle: Path, folder: Path, *options: object) -> Iterator[FaultyServer]:
    """Start a server on ONNX Runtime whose engine has switches.

    Args:
        bundle: What it serves.
        folder: An empty folder for the switches.
        *options: Options of ``bge-serve``.
    """
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    marks = {name: tokenizer.token_to_id(character) for name, character in MARKS.items()}
    environment = {"FAULTS": str(folder), "MARKS": json.dumps(marks), "REOPEN_S": str(REOPEN_S)}
    with running_server(
        bundle, "--engine", "onnxruntime", *options, environment=environment, program=_PROGRAM
    ) as server:
        yield FaultyServer(server, folder)
