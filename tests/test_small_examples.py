"""The examples of one file run, and print what they should. That for Ray is in tests/cluster."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from bge_export.cli import main as export_command
from bge_runtime import FlagModel
from tests.helpers.bundles import ROOT, WITH_PYTORCH

EXAMPLES = ROOT / "examples"
LONG = {"prepare", "search_qdrant", "search_milvus", "search_lancedb"}
"""Those of ``make examples``, which tests/test_examples.py runs."""

SHORT = sorted({path.stem for path in EXAMPLES.glob("*.py")} - LONG)
TABLE = (EXAMPLES / "README.md").read_text("utf-8")

CELERY_SETTINGS = """
broker_url = "filesystem://"
result_backend = {results!r}
broker_transport_options = dict.fromkeys(("data_folder_in", "data_folder_out"), {queue!r})
broker_transport_options["control_folder"] = {control!r}
"""
"""Queues that are folders: with a server or without, Celery forks its workers."""

needs_pytorch = pytest.mark.skipif(not WITH_PYTORCH, reason="the example's model is exported")


def run_example(name: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", f"{name}.py", *map(str, arguments)],
        cwd=EXAMPLES, env=os.environ | environment,
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def minilm(minilm_bundle: Callable[[str], Path]) -> Path:
    """A trained model, whose answers have a meaning."""
    return minilm_bundle("mean")


@pytest.mark.parametrize("name", SHORT)
def test_an_example_is_short_and_says_how_to_run_it(name: str):
    source = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert len(source.splitlines()) <= 60
    explained = ast.get_docstring(ast.parse(source))
    assert re.search(rf"^    .*\b{name}\b", explained, re.MULTILINE)
    assert "print" in explained
    assert "`pip install" in explained.replace("\n", " ")
    assert f"({name}.py)" in TABLE


@needs_pytorch
def test_a_folder_is_searched(minilm: Path, tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "heat.txt").write_text("A heat pump moves warmth.\n\nIt needs electricity.\n")
    (tmp_path / "notes" / "grain.md").write_text("# Grain\n\nRye is a\nhardy grain.\n")
    questions = ["how do heat pumps work?", "which grain is hardy?"]
    lines = run_example("search_folder", minilm, tmp_path, *questions).splitlines()
    assert lines[0::4] == questions
    assert re.fullmatch(r"  0\.\d{3}  heat\.txt: A heat pump moves warmth\.", lines[1])
    assert re.fullmatch(r"  0\.\d{3}  notes/grain\.md: Rye is a hardy grain\.", lines[5])


@needs_pytorch
def test_qdrant_finds_a_passage_by_its_own_words(tiny_m3_bundle: Path):
    pytest.importorskip("qdrant_client")
    passage = "Error E-4017 means that the filter must be cleaned."
    printed = run_example("hybrid_qdrant", tiny_m3_bundle, passage).splitlines()
    assert printed[0] == passage
    assert re.fullmatch(rf"  1\.000  {re.escape(passage)}", printed[1])
    assert len(printed) == 4


@needs_pytorch
def test_langchain_answers_with_a_source(minilm: Path):
    pytest.importorskip("langchain_core")
    printed = run_example("langchain_rag", minilm, "how do heat pumps work?")
    assert printed == "[heat] A heat pump moves warmth from outside into the house.\n"


def test_fastapi_answers_several_threads_at_once(tiny_bundle: Path, monkeypatch):
    pytest.importorskip("fastapi")
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    monkeypatch.setenv("MODEL", str(tiny_bundle))
    monkeypatch.syspath_prepend(EXAMPLES)
    import fastapi_app

    texts = [f"text {number}" for number in range(12)]
    expected = FlagModel(str(tiny_bundle)).encode(texts)
    with TestClient(fastapi_app.app) as client, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda text: client.post("/embed", json={"texts": [text]}), texts)
        for answer, vector in zip(answers, expected, strict=True):
            assert answer.json()["vectors"][0] == pytest.approx(vector.tolist(), abs=1e-6)
        assert client.post("/embed", json={"texts": []}).status_code == 422


def test_celery_embeds_in_processes_that_it_forks(tiny_bundle: Path, tmp_path: Path):
    pytest.importorskip("celery")
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    folders = {name: str(tmp_path / name) for name in ("queue", "control")}
    settings = CELERY_SETTINGS.format(results=f"file://{tmp_path}/results", **folders)
    (tmp_path / "queue_in_a_folder.py").write_text(settings)
    given = {
        "MODEL": str(tiny_bundle),
        "CELERY_CONFIG": "queue_in_a_folder",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    }
    command = ["-m", "celery", "-A", "celery_worker", "worker", "--concurrency", "2"]
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command, "--loglevel", "info"],
            cwd=EXAMPLES, env=os.environ | given, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            assert run_example("celery_worker", "a heat pump", "rye", **given) == "(2, 48)\n"
        finally:
            worker.terminate()
            worker.wait(60)
    assert "ForkPoolWorker" in (tmp_path / "log").read_text()


def test_the_docker_export_copies_what_is_there_and_pins_what_is_tested():
    """It is built by hand; this holds what would otherwise drift."""
    folder = EXAMPLES / "export_in_docker"
    dockerfile = (folder / "Dockerfile").read_text("utf-8")
    kept = (folder / "Dockerfile.dockerignore").read_text("utf-8")
    copied = {
        name
        for line in re.findall(r"^COPY ([^-].*)", dockerfile, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert copied == {line[1:] for line in kept.splitlines() if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= copied
    (python,) = re.findall(r"^ARG PYTHON=(.*)", dockerfile, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    (torch,) = re.findall(r"^ARG TORCH=(.*)", dockerfile, re.MULTILINE)
    assert f"torch=={torch}" in (ROOT / "constraints-common.txt").read_text("utf-8").split()
    options = {name for parameter in export_command.params for name in parameter.opts}
    (command,) = re.findall(r"^    bge-export (.*)$", dockerfile, re.MULTILINE)
    assert {word for word in command.split() if word.startswith("--")} <= options
