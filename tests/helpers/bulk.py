"""Jobs of bulk embedding: their input, and what they leave in a folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.bundles import ROOT

_SIGNALS = "BGE_TESTS_SIGNALS"

in_own_process = pytest.mark.skipif(
    _SIGNALS not in os.environ, reason="sends signals; another test runs it in a process of its own"
)
"""Marks tests that send signals: a worker of pytest-xdist would end, or have them ignored."""

_PYTEST = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
"""Runs pytest with Ctrl-C: shells ignore it for what they run in the background, and children
inherit that."""

WORDS = ["the", "of", "a", "vector", "text", "query", "passage", "house", "naïve", "向量", "river"]


def make_texts(count: int, *, seed: int = 0, longest: int = 30) -> list[str]:
    """Return texts of 1 to ``longest`` words, the same ones each time."""
    chosen = random.Random(seed)
    return [
        " ".join([str(number), *chosen.choices(WORDS, k=chosen.randint(1, longest) - 1)])
        for number in range(count)
    ]


def write_parquet(
    path: Path, texts: Sequence[str | None], *, first: int = 0, row_group: int | None = None
) -> Path:
    """Write rows with an id, a text and a title; ``first`` is the number of the first row."""
    numbers = range(first, first + len(texts))
    table = pa.table(
        {
            "name": pa.array([f"row-{number}" for number in numbers], pa.string()),
            "text": pa.array(texts, pa.string()),
            "title": pa.array([None if n % 3 else f"Title {n}" for n in numbers], pa.string()),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group or max(1, len(texts)))
    return path


def data_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files of a job that hold rows, and check that all is tidy."""
    left = [path.name for path in (folder / "_temporary").iterdir()]
    assert not left, f"left in _temporary: {left}"
    manifest = {path.name for path in (folder / "_manifest").iterdir()}
    locks = {name for name in manifest if not name.endswith(".json")}
    assert locks <= {"result.lock"}, locks  # which Lance's format leaves
    paths = [*folder.glob("part-*"), *folder.glob("_rejects/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def records(folder: Path) -> dict[str, Any]:
    """Return the records of complete shards, without the times of files."""
    found = {}
    for path in sorted(folder.glob("_manifest/part-*.json")):
        record = json.loads(path.read_text())
        del record["checksum"], record["job"]
        for file in record["files"].values():
            del file["modified_ns"], file["changed_ns"]
        found[path.name] = record
    return found


def read_rows(folder: Path) -> pa.Table:
    """Return the rows of all Parquet shards, in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("part-*.parquet")))


def run_in_own_process(file: str, name: str) -> None:
    """Run the tests of a file whose names hold ``name``, which are marked with `in_own_process`."""
    kept = {key: os.environ[key] for key in os.environ if not key.startswith(("PYTEST", "COV_"))}
    chosen = f"{name} and not of_their_own"
    found = subprocess.run(
        [sys.executable, "-c", _PYTEST, "-q", "-p", "no:cacheprovider", file, "-k", chosen],
        cwd=ROOT,
        env={**kept, _SIGNALS: "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        start_new_session=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout


def run_jobs(jobs: Sequence[dict[str, Any]], *, together: bool = False) -> list[dict[str, Any]]:
    """Run jobs in processes, some of which are killed; see `tests.helpers.kill`."""
    command = [sys.executable, "-m", "tests.helpers.kill", json.dumps(jobs)]
    found = subprocess.run(
        [*command, *(["together"] if together else [])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    answers: list[dict[str, Any]] = json.loads(found.stdout.splitlines()[-1])
    for answer in answers:
        answer["stderr"] = found.stderr
    return answers
