"""``docs/guides/bulk``: its tables are those of the command."""

from __future__ import annotations

import re

import click
import pytest

from bge_runtime.cli.embed import main
from bge_runtime.cli.embed_options import OF_A_FILE
from tests.helpers.guides import blocks, names, read, table

pytest.importorskip("pyarrow")
from bge_runtime.bulk.files import COMPRESSIONS, SUFFIXES

RUNNING = blocks("guides/bulk/running.md")


def test_commands_elsewhere_have_options_of_the_command():
    known = {name for parameter in main.params for name in parameter.opts}
    elsewhere = "\n".join(block.text for block in RUNNING)
    found = re.findall(r"(?<=\s)--?[a-z][a-z-]*(?=[ =\n])", elsewhere)
    sbatch = {"--array", "--cpus-per-task", "--requeue"}
    assert {"-o", "--shard", "--threads"} <= set(found)
    assert set(found) - sbatch <= known


def test_the_job_of_kubernetes_counts_from_1():
    yaml = pytest.importorskip("yaml")
    (text,) = [block.text for block in RUNNING if block.language == "yaml"]
    job = yaml.safe_load(text)
    assert job["spec"]["completions"] == 8
    (command,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--shard $((JOB_COMPLETION_INDEX + 1))/8" in command


def test_the_options_are_those_of_the_command():
    rows = table("guides/bulk/options.md", "Options")
    described = {names(row[0])[0]: row[1].strip("`") for row in rows}
    options = [each for each in main.params if isinstance(each, click.Option)]
    known = {
        each.opts[0]: each
        for each in options
        if each.name not in OF_A_FILE and each.opts[0] != "--version"
    }
    assert set(described) == set(known)
    for name, default in described.items():
        actual = known[name].default
        given = actual if isinstance(actual, str | int) and actual is not False else ""
        assert default == str(given), name


def test_the_formats_are_those_that_are_read():
    described = {}
    for row in table("guides/bulk/index.md", "Input"):
        suffixes, formats = names(row[1]), names(row[0])
        for name in formats:
            described[name] = tuple(suffixes if len(formats) == 1 else [f".{name}"])
    assert described == SUFFIXES
    page = read("guides/bulk/index.md")
    (line,) = [line for line in page.splitlines() if "may be compressed" in line]
    assert names(line) == list(COMPRESSIONS)
