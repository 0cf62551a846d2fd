"""``docs/guides/bulk``: its commands and its code are run, its tables are those of the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from bge_runtime.cli.embed import main
from bge_runtime.cli.embed_options import OF_A_FILE
from tests.helpers.bundles import ROOT
from tests.helpers.guides import Block, blocks, commands, names, table

pa = pytest.importorskip("pyarrow")
from bge_runtime.bulk.files import COMPRESSIONS, SUFFIXES  # noqa: E402

PAGE = (ROOT / "docs" / "guides" / "bulk" / "index.md").read_text("utf-8")
BLOCKS = list(blocks(PAGE))
DIM = 48
"""Components of the tiny models' vectors."""


def rows() -> list[dict[str, Any]]:
    return [
        {
            "key": f"a{number}",
            "title": f"Heat pump {number}",
            "text": None
            if number == 7
            else f"{number} heat pumps move warmth. " * (1 + number % 30),
            "lang": "en",
        }
        for number in range(100)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page's files."""
    import gzip

    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("bulk-guide")
    pq.write_table(pa.Table.from_pylist(rows()), folder / "articles.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows())
    for name in ("corpus/deep/one.jsonl.gz", "more/part-1.jsonl.gz", "more/part-2.jsonl.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write(lines)
    (folder / "questions.csv").write_text("number,text\n1,what is a heat pump?\n2,and rye?\n")
    (folder / "crawl.jsonl").write_text(lines + "no JSON\n", "utf-8")
    return folder


@pytest.fixture
def embed(
    folder: Path, tiny_bundle: Path, tiny_m3_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], Result]:
    """Return a function that runs a command of the page."""
    monkeypatch.chdir(folder)
    models = {"bge-small-en-v1.5": str(tiny_bundle), "bge-m3": str(tiny_m3_bundle)}

    def run(words: list[str]) -> Result:
        expanded: list[str] = []
        for word in words[1:]:
            matched = sorted(folder.glob(word)) if "*" in word else []
            expanded += map(str, matched or [models.get(word, word)])
        return CliRunner().invoke(main, expanded)

    return run


def local_commands() -> Iterator[tuple[str, list[str]]]:
    for block in BLOCKS:
        if block.language == "bash" and block.section not in ("Several machines", "Remote storage"):
            for words in commands(block.text, "bge-embed"):
                yield block.section, words


COMMANDS = list(local_commands())


def output_of(words: list[str]) -> str:
    return words[words.index("-o") + 1]


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=output_of)
def test_commands_run_and_a_second_time_find_everything_done(
    embed: Callable[[list[str]], Result], folder: Path, words: list[str]
):
    if "lance" in words:
        pytest.importorskip("lance")
    if "--query" in words:
        words = [*words, "--instruction", "find: "]  # the tiny model recommends none
    first = embed(words)
    assert first.exit_code == 0, first.stderr
    assert re.search(r"^bge-embed: \d+ shards?: 1 written", first.stderr, re.MULTILINE)
    found = sorted(folder.glob(f"{output_of(words)}/part-*"))
    assert found
    again = embed(words)
    assert "1 shard: 0 written, 1 already there" in again.stderr
    assert sorted(folder.glob(f"{output_of(words)}/part-*")) == found


def test_the_page_has_commands():
    assert len(COMMANDS) == 10
    assert len({output_of(words) for _, words in COMMANDS}) == 10


def test_the_output_shown_is_that_of_the_command(embed: Callable[[list[str]], Result]):
    (_, words) = COMMANDS[0]
    result = embed([*words[:-1], "another"])
    (shown,) = [block.text for block in BLOCKS if block[:2] == ("Start", "")]

    def pattern(text: str) -> str:
        return re.sub(r"[\d,.:]*\d", "0", re.sub(r"/\S+", "/", text))

    assert pattern(result.stderr) == pattern(shown)


def code(block: Block, bundle: Path) -> str:
    return block.text.replace('"bge-small-en-v1.5"', repr(str(bundle))).replace("384", str(DIM))


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.text[:30].split("\n")[0])
def test_code_runs(
    embed: Callable[[list[str]], Result],
    folder: Path,
    tiny_bundle: Path,
    block: Block,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    for package in re.findall(r"^import (\w+)", block.text, re.MULTILINE):
        pytest.importorskip(package)
    if "import datasets" in block.text:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    for _, words in COMMANDS:
        output = output_of(words)
        if re.search(rf"[\"']{output}[/\"']", block.text) and not (folder / output).exists():
            assert embed(words).exit_code == 0
    scope: dict[str, Any] = {}
    exec(compile(code(block, tiny_bundle), "page", "exec"), scope)
    if "matrix" in scope:
        assert scope["matrix"].shape == (99, DIM)
    if "vectors" in scope:
        assert scope["vectors"].shape == (99, DIM)
        assert len(scope["ids"]) == 99
    if "pooling" in block.text:
        assert capsys.readouterr().out == "cls\n"
    if "summary" in scope:
        assert capsys.readouterr().out == "100 True\n"


def test_commands_elsewhere_have_options_of_the_command():
    known = {name for parameter in main.params for name in parameter.opts}
    elsewhere = [
        block.text for block in BLOCKS if block.section in ("Several machines", "Remote storage")
    ]
    found = re.findall(r"(?<=\s)--?[a-z][a-z-]*(?=[ =\n])", "\n".join(elsewhere))
    sbatch = {"--array", "--cpus-per-task", "--requeue"}
    assert {"-o", "--shard", "--threads"} <= set(found)
    assert set(found) - sbatch <= known


def test_the_job_of_kubernetes_counts_from_1():
    yaml = pytest.importorskip("yaml")
    (text,) = [block.text for block in BLOCKS if block.language == "yaml"]
    job = yaml.safe_load(text)
    assert job["spec"]["completions"] == 8
    (command,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--shard $((JOB_COMPLETION_INDEX + 1))/8" in command


def test_the_options_are_those_of_the_command():
    described = {names(row[0])[0]: row[1].strip("`") for row in table(PAGE, "Options")}
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
    for row in table(PAGE, "Input"):
        found = names(row[1])
        formats = names(row[0])
        for name in formats:
            one = found if len(formats) == 1 else [f".{name}"]
            described[name] = tuple(one)
    assert described == SUFFIXES
    (line,) = [line for line in PAGE.splitlines() if "may be compressed" in line]
    assert names(line) == list(COMPRESSIONS)


def test_the_readme_leads_to_the_page():
    assert "](docs/guides/bulk/index.md)" in (ROOT / "README.md").read_text("utf-8")
