"""The script of bge-serve on a GPU gives commands that exist, in order, and tells what failed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bge_bench.cli.main import main as bge_bench
from bge_export.cli import main as bge_export
from tests.helpers.bundles import ROOT

SCRIPTS = ("serve_on_gpu.sh", "gpu_packages.sh")

STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
if "-m" not in arguments:
    os.execv({python!r}, [{python!r}, *arguments])
with open("commands", "a") as log:
    print(json.dumps(arguments[arguments.index("-m") + 1 :]), file=log)
for option in ("--json", "--output"):
    if option in arguments:
        made = Path(arguments[arguments.index(option) + 1])
        made.write_text("{{}}") if option == "--json" else made.mkdir()
if "--overload" in arguments and Path("broken").exists():
    sys.exit("no room")
"""


@pytest.fixture
def run(tmp_path: Path):
    """Run a copy of the script with a stand-in for Python; gives its process and the commands."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / "benchmarks" / name, folder)
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)

    def run(**given: str):
        log = tmp_path / "commands"
        log.unlink(missing_ok=True)
        fixed = {"PYTHON": str(python), "DEVICE": "cpu", "BUNDLES": str(tmp_path / "bundles")}
        done = subprocess.run(
            [folder / "serve_on_gpu.sh", "results"], cwd=tmp_path, env=os.environ | fixed | given,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done, [json.loads(line) for line in log.read_text().splitlines()]

    return run


def parse(module: str, *arguments: str) -> None:
    """Parse a command line as the command itself would."""
    command: click.Command = bge_export
    if module == "bge_bench.cli.main":
        command, arguments = bge_bench.commands[arguments[0]], arguments[1:]
    command.make_context(module, list(arguments))


def test_export_tables_and_overload(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done, commands = run(OPTIONS="--layers 2")
    assert (done.returncode, done.stderr) == (0, "")
    steps = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    assert steps == [["export", "0"], ["tables", "0"], ["overload", "0"]]
    for command in commands:
        parse(*command)
    assert {"--layers", "--target"} <= {*commands[0]}
    assert len(Path("bundles/questions.txt").read_text().splitlines()) == 240
    names = {path.name for path in Path("results").glob("*.json")}
    assert names == {
        "gpu-serve-bge-large-en-v1.5.json", "gpu-serve-bge-large-en-v1.5-overload.json",
    }  # fmt: skip


def test_a_bundle_that_is_there_stays_and_a_step_that_fails_is_told(run, tmp_path: Path):
    (tmp_path / "bundles" / "bge-large-en-v1.5").mkdir(parents=True)
    (tmp_path / "broken").touch()
    done, commands = run(DATA=".", INFINITY=".infinity")
    assert done.returncode == 1
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
        ["tables", "0"], ["overload", "1"],
    ]  # fmt: skip
    assert "infinity" in commands[0]
    assert "no room" in (tmp_path / "results" / "gpu-serve-overload.log").read_text()
