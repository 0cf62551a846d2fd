"""The script of all CPU tables gives commands that exist, goes on where it stopped, and tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from bge_bench.cli.main import main as bge_bench
from bge_export.cli import main as bge_export
from tests.helpers.bundles import ROOT

SCRIPT = ROOT / "benchmarks" / "run_on_cpu.sh"

STAND_IN = """#!{python}
import json, sys
from pathlib import Path
name, *arguments = [Path(sys.argv[0]).name, *sys.argv[1:]]
with open("commands", "a") as log:
    print(json.dumps([name, *arguments]), file=log)
for option in ("--json", "--output"):
    if option in arguments:
        made = Path(arguments[arguments.index(option) + 1])
        if made.stem == "base-mixed" and not Path("mended").exists():
            sys.exit("no room")
        made.write_text("{{}}") if option == "--json" else made.mkdir()
if arguments[0] == "checkpoint":
    Path(arguments[2]).mkdir()
"""


@pytest.fixture
def run(tmp_path: Path):
    """Run the script with stand-ins for the two commands; gives its process and the commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bge-export", "bge-bench"):
        (programs / name).write_text(STAND_IN.format(python=sys.executable))
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:/usr/bin:/bin", "PYTHON": sys.executable}

    def run(**given: str):
        log = tmp_path / "commands"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [SCRIPT, "results"], cwd=tmp_path, env=environment | given,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        commands = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
        return done, list(commands)

    return run


def parse(name: str, *arguments: str) -> None:
    """Parse a command line as the command itself would."""
    command: click.Command = bge_export
    if name == "bge-bench":
        command, arguments = bge_bench.commands[arguments[0]], arguments[1:]
    command.make_context(name, list(arguments))


def test_every_table_once(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mended").touch()
    done, commands = run()
    assert (done.returncode, done.stderr) == (0, "")
    tables = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(tables) == 10
    assert {status for _, status, _ in tables} == {"0"}
    assert {path.stem for path in Path("results").glob("*.json")} == {name for name, *_ in tables}
    for command in commands:
        parse(*command)
    exported = [command[1] for command in commands if command[0] == "bge-export"]
    assert sorted(exported) == sorted(set(exported))
    assert min(map(len, Path("results/full.txt").read_text().splitlines())) > 2000
    done, commands = run()
    assert (done.returncode, done.stdout, commands) == (0, "", [])


def test_a_table_that_fails_is_told_and_tried_again(run, tmp_path: Path):
    asked = {"TABLES": "base-mixed base-latency"}
    done, _ = run(**asked)
    assert done.returncode == 1
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [
        ["base-mixed", "1"], ["base-latency", "0"],
    ]  # fmt: skip
    assert "no room" in (tmp_path / "results" / "base-mixed.log").read_text()
    (tmp_path / "mended").touch()
    done, commands = run(**asked)
    assert done.returncode == 0
    assert [command[1] for command in commands] == ["throughput"]


def test_a_table_that_there_is_not_is_an_error(run):
    done, commands = run(TABLES="base-natrual")
    assert done.returncode == 2
    assert "there is no table base-natrual; there are base-natural base-mixed" in done.stderr
    assert commands == []
