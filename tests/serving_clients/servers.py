"""Servers that the clients call, and what they must answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

ROOT = Path(__file__).parents[2]

RUNTIME_PYTHON = os.environ.get("RUNTIME_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
"""Interpreter of the environment that has the runtime and PyTorch; the clients' has neither."""

SERVE = "from bge_runtime.cli.serve import main; main()"

SAME_VALUE = 1e-6
"""A request is computed in batches of its own, so that sums have another order. Vectors have a
length of 1, and JSON and base64 hold every bit of a float32."""

SAME_SCORE = 1e-5
"""The same for scores of a reranker."""

START_SECONDS = 60
"""Until a server must have opened its models, on a machine with much else to do."""


@dataclass(frozen=True)
class Model:
    """A served model, and the outputs of ``encode`` for the texts of the tests.

    Attributes:
        url: Base address of its routes, without a slash at the end.
        name: Its name in requests.
        texts: Texts, in the order of the outputs.
        too_long: A text that is cut.
        many: As many texts as a request may have.
        instruction: Put before queries.
        outputs: Arrays and lists by name; see `make_reference.py`.
    """

    url: str
    name: str
    texts: list[str]
    too_long: str
    many: list[str]
    instruction: str
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Reranker:
    """A served reranker, and what ``compute_score`` returns for the texts of the tests.

    Attributes:
        url: Base address of its routes, without a slash at the end.
        name: Its name in requests.
        query: What texts are scored for.
        texts: Texts, in the order of the scores.
        too_long: A text that is cut.
        scores: Their scores, between 0 and 1.
        logits: The same as logits.
    """

    url: str
    name: str
    query: str
    texts: list[str]
    too_long: str
    scores: list[float]
    logits: list[float]

    @property
    def order(self) -> list[int]:
        """Positions of the texts, the best one first."""
        return sorted(range(len(self.texts)), key=lambda row: -self.scores[row])


def environment() -> dict[str, str]:
    """Return the environment of a process that imports the runtime of this checkout."""
    paths = [ROOT, ROOT / "runtime", ROOT / "export"]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
    }


def make_reference(folder: Path) -> dict[str, Any]:
    """Return what `make_reference.py` writes."""
    program = Path(__file__).with_name("make_reference.py")
    done = subprocess.run(
        [RUNTIME_PYTHON, str(program), str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads((folder / "reference.json").read_text())
    return read


def model_at(url: str, name: str, reference: dict[str, Any]) -> Model:
    """Return a model of the reference, as it is served under an address."""
    shared = {key: reference[key] for key in ("texts", "too_long", "many", "instruction")}
    return Model(url=url, name=name, outputs=reference[name], **shared)


def reranker_at(url: str, reference: dict[str, Any]) -> Reranker:
    """Return the reranker of the reference, as it is served under an address."""
    found = reference["ranker"]
    shared = {key: reference[key] for key in ("texts", "too_long")}
    parts = {key: found[key] for key in ("query", "scores", "logits")}
    return Reranker(url=url, name="ranker", **shared, **parts)


@contextmanager
def running(
    folder: Path, reference: dict[str, Any], names: Sequence[str], *options: str
) -> Iterator[str]:
    """Serve models of the reference, each under its name there, and give the server's address."""
    models = [f"{reference[name]['bundle']}={name}" for name in names]
    command = [RUNTIME_PYTHON, "-c", SERVE, *models, "--port", "0", "--precision", "fp32", *options]
    log = folder / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, env=environment(), stderr=stderr)
        try:
            yield wait_for_address(process, log)
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that a server prints when it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        said = re.search(r"listening on (http://\S+)", log.read_text())
        if said:
            return said[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def assert_same(found: ArrayLike, expected: ArrayLike) -> None:
    """Check vectors against those of ``encode``, in units of their length if that is above 1."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    unit = max(1.0, np.linalg.norm(expected, axis=-1).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE * unit)


def assert_ranked(found: Iterable[tuple[int, float]], expected: Reranker, top: int | None) -> None:
    """Check positions and scores, the best one first, against those of ``compute_score``.

    Args:
        found: Positions and scores.
        expected: What they are of.
        top: How many there must be; None for all.
    """
    rows, scores = zip(*found, strict=True)
    assert list(rows) == expected.order[:top]
    np.testing.assert_allclose(
        scores, [expected.scores[row] for row in rows], rtol=0, atol=SAME_SCORE
    )


def assert_same_weights(
    indices: Sequence[int], values: Sequence[float], expected: dict[str, float]
) -> None:
    """Check lexical weights, by token id, against those of ``encode``."""
    assert len(indices) == len(set(indices)) == len(values)
    assert set(indices) == {int(token) for token in expected}
    assert_same(values, [expected[str(token)] for token in indices])
