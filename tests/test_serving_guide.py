"""``docs/guides/serving``: its commands are run, and its tables are those of the server."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from bge_runtime.cli.serve import main
from tests.helpers.bundles import ROOT
from tests.helpers.guides import blocks, names
from tests.helpers.guides import commands as commands_of
from tests.helpers.guides import table as table_of
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.servers import Server, running_server

PAGE = (ROOT / "docs" / "guides" / "serving" / "index.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")

ADDRESS = "http://localhost:8080"
"""Where the page's servers are."""


def commands(name: str) -> list[list[str]]:
    """Return the page's commands of a name, as words."""
    text = "\n".join(block.text for block in blocks(PAGE) if block.language == "bash")
    return commands_of(text, name)


class Exchange(NamedTuple):
    """A request of the page, the server that it is for, and what the page says is answered."""

    server: tuple[str, ...]
    path: str
    body: str
    expected: Any


def exchanges() -> list[Exchange]:
    """Return the requests that the page makes with curl."""
    found: list[Exchange] = []
    server: tuple[str, ...] = ()
    waiting: Exchange | None = None
    for block in blocks(PAGE):
        if block.language == "json":
            assert waiting is not None
            found.append(waiting._replace(expected=json.loads(re.sub(", …", "", block.text))))
            waiting = None
        if block.language != "bash":
            continue
        for line in block.text.splitlines():
            if line.startswith("bge-serve "):
                server = tuple(shlex.split(line)[1:])
        if block.text.startswith("curl "):
            assert waiting is None, waiting
            _, url, _, header, _, body = shlex.split(block.text)
            assert header == "content-type: application/json"
            assert url.startswith(ADDRESS)
            waiting = Exchange(server, url.removeprefix(ADDRESS), body, None)
    assert waiting is None
    return found


EXCHANGES = exchanges()


@pytest.fixture(scope="module")
def bundles(
    full_tiny_bundle: Path, tiny_m3_bundle: Path, tiny_bundle: Path, made_once: object
) -> dict[str, str]:
    """What the page's models are here."""
    reranker = reranker_bundle("xlm-roberta", targets=("cpu",))
    return {
        "./bge-small-en-v1.5": f"{full_tiny_bundle}=bge-small-en-v1.5",
        "./bge-m3": f"{tiny_m3_bundle}=bge-m3",
        "./my-finetune=docs": f"{tiny_bundle}=docs",
        "./bge-reranker-v2-m3": f"{reranker}=bge-reranker-v2-m3",
    }


@pytest.fixture(scope="module")
def servers(bundles: dict[str, str]):
    """Starts the page's servers, each once."""
    started: dict[tuple[str, ...], Server] = {}
    with ExitStack() as stack:

        def server(words: tuple[str, ...]) -> Server:
            if words not in started:
                arguments = [bundles.get(word, word) for word in words]
                started[words] = stack.enter_context(running_server(*arguments))
            return started[words]

        yield server


def like(found: Any, expected: Any) -> bool:
    """Return whether an answer has the keys and types of another; of lists, the first items."""
    if isinstance(expected, dict) and isinstance(found, dict):
        same = list(found) == list(expected)
        return same and all(like(found[name], expected[name]) for name in expected)
    if isinstance(expected, list) and isinstance(found, list):
        # Random weights may leave a text without lexical weights.
        return not found or like(found[0], expected[0])
    return type(found) is type(expected)


def test_the_page_has_requests():
    assert len(EXCHANGES) >= 5
    assert {each.server for each in EXCHANGES} == {
        ("./bge-small-en-v1.5",),
        ("./bge-m3",),
        ("./bge-m3", "./my-finetune=docs"),
        ("./bge-reranker-v2-m3",),
    }


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda each: each.path)
def test_requests_are_answered_as_the_page_says(exchange: Exchange, servers):
    server = servers(exchange.server)
    headers = {"content-type": "application/json"}
    answer = server.client.post(exchange.path, content=exchange.body, headers=headers).json()
    assert like(answer, exchange.expected), answer
    if "error" in answer:
        assert answer == exchange.expected
    for name in ("object", "model"):
        if name in answer:
            assert answer[name] == exchange.expected[name]


def python(section: str) -> str:
    (code,) = [block.text for block in blocks(PAGE) if block[:2] == (section, "python")]
    return code


def test_the_code_with_the_client_of_openai_runs(servers, capsys):
    pytest.importorskip("openai", reason="openai is not installed")
    server = servers(("./bge-small-en-v1.5",))
    code = python("Start")
    assert code.count(ADDRESS) == 1
    scope: dict[str, Any] = {}
    exec(compile(code.replace(ADDRESS, server.url), "page", "exec"), scope)
    scope["client"].close()
    assert capsys.readouterr().out == "1 bge-small-en-v1.5\n"


@pytest.mark.parametrize("path", ["/embeddings", "/api"])
def test_the_code_with_another_application_runs(full_tiny_bundle: Path, path: str):
    """Also below a path with which a route of the server begins."""
    code = python("In another application")
    for old, new in (("bge-small-en-v1.5", str(full_tiny_bundle)), ("/embeddings", path)):
        assert code.count(f'"{old}"') == 1
        code = code.replace(f'"{old}"', repr(new))
    with running_server(program=code + SERVE) as server:
        answer = server.client.post(f"{path}/embed", json={"inputs": ["a", "b"]})
        assert answer.status_code == 200
        assert len(answer.json()) == 2


SERVE = """
import sys
import uvicorn


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()
        print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)


Server(uvicorn.Config(app, port=0, lifespan="on")).run()
"""
"""Serves `app`, and reports where."""


# -- Tables --------------------------------------------------------------------------------


def table(section: str) -> list[list[str]]:
    """Return the cells of a section's first table, without its heading."""
    return table_of(PAGE, section)


def test_the_options_are_those_of_the_command():
    described = {names(row[0])[0]: row[1].strip("`") for row in table("Options")}
    options = [each for each in main.params if isinstance(each, click.Option)]
    known = {each.opts[0]: each for each in options if each.opts[0] != "--version"}
    assert list(described) == list(known)
    for name, default in described.items():
        actual = known[name].default
        given = actual if isinstance(actual, str | int | float) and actual is not False else ""
        assert default == (f"{given:g}" if isinstance(given, float) else str(given)), name


def test_commands_have_options_of_the_command():
    known = {name for parameter in main.params for name in parameter.opts}
    for words in commands("bge-serve"):
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_the_routes_are_those_of_the_server(servers):
    served = {
        (method.upper(), re.sub(r"\{(\w+):path\}", r"{\1}", path))
        for model in ("./bge-small-en-v1.5", "./bge-reranker-v2-m3")
        for path, methods in servers((model,)).client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    described = set()
    for row in table("Routes"):
        method, *paths = [part for cell in names(row[1]) for part in cell.split()]
        described |= {(method, path) for path in paths}
    # Of no interest to a reader: a page's data, what is at the root.
    left_out = {("GET", "/ui/stats"), ("GET", "/")}
    assert described - {("GET", "/openapi.json")} == served - left_out


def test_the_metrics_are_those_of_the_server(servers):
    text = servers(("./bge-small-en-v1.5",)).client.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    served = {name for name in kinds if name.startswith("bge_")}
    described = {name for row in table("Metrics") for name in names(row[0])}
    assert described == served
    (queries,) = [block.text for block in blocks(PAGE) if block.language == "promql"]
    for name in re.findall(r"bge_\w+", queries):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in served or kinds.get(family) == "histogram", name


def test_the_statuses_are_those_of_the_server():
    from bge_runtime.serving.errors import Kind

    cells = [row[0] for row in table("Limits and errors")]
    described = {int(number) for cell in cells for number in re.findall(r"\d{3}", cell)}
    # 422 is 400 at TEI's routes, and 431 is answered before a request is one.
    assert described == {kind.status for kind in Kind} - {405} | {422, 431}


def test_the_readme_starts_a_server():
    assert "bge-serve" in README
    assert "](docs/guides/serving/index.md)" in README
