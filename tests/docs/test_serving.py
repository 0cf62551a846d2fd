"""``docs/guides/serving``: its tables are those of the server, and its application runs."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from bge_runtime.cli.serve import main
from tests.helpers.guides import blocks, code_of, names, table
from tests.helpers.servers import running_server

SMALL, RERANKER = ("./bge-small-en-v1.5",), ("./bge-reranker-v2-m3",)


def test_the_options_are_those_of_the_command():
    rows = table("guides/serving/options.md", "Options")
    described = {names(row[0])[0]: row[1].strip("`") for row in rows}
    options = [each for each in main.params if isinstance(each, click.Option)]
    known = {each.opts[0]: each for each in options if each.opts[0] != "--version"}
    assert list(described) == list(known)
    for name, default in described.items():
        actual = known[name].default
        given = actual if isinstance(actual, str | int | float) and actual is not False else ""
        assert default == (f"{given:g}" if isinstance(given, float) else str(given)), name


def test_the_routes_are_those_of_the_server(serve):
    served = {
        (method.upper(), re.sub(r"\{(\w+):path\}", r"{\1}", path))
        for words in (SMALL, RERANKER)
        for path, methods in serve(words).client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    described = set()
    for row in table("guides/serving/routes.md", "Routes"):
        method, *paths = [part for cell in names(row[1]) for part in cell.split()]
        described |= {(method, path) for path in paths}
    # Of no interest to a reader: a page's data, what is at the root.
    left_out = {("GET", "/ui/stats"), ("GET", "/")}
    assert described - {("GET", "/openapi.json")} == served - left_out


def test_the_metrics_are_those_of_the_server(serve):
    text = serve(SMALL).client.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    served = {name for name in kinds if name.startswith("bge_")}
    page = "guides/serving/monitoring.md"
    described = {name for row in table(page, "Metrics") for name in names(row[0])}
    assert described == served
    (queries,) = [block.text for block in blocks(page) if block.language == "promql"]
    for name in re.findall(r"bge_\w+", queries):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in served or kinds.get(family) == "histogram", name


def test_the_statuses_are_those_of_the_server():
    from bge_runtime.serving.errors import Kind

    cells = [row[0] for row in table("guides/serving/options.md", "Limits and errors")]
    described = {int(number) for cell in cells for number in re.findall(r"\d{3}", cell)}
    # 422 is 400 at TEI's routes, and 431 is answered before a request is one.
    assert described == {kind.status for kind in Kind} - {405} | {422, 431}


@pytest.mark.parametrize("path", ["/embeddings", "/api"])
def test_the_code_with_another_application_runs(models: dict[str, Path], path: str):
    """Also below a path with which a route of the server begins."""
    code = code_of("guides/serving/deploy.md", "In another application")
    small = "bge-small-en-v1.5"
    for old, new in ((small, str(models[small])), ("/embeddings", path)):
        assert code.count(f'"{old}"') == 1
        code = code.replace(f'"{old}"', repr(new))
    with running_server(program=code + _SERVE) as server:
        answer = server.client.post(f"{path}/embed", json={"inputs": ["a", "b"]})
        assert answer.status_code == 200
        assert len(answer.json()) == 2


_SERVE = """
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
