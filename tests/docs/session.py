"""Runs the blocks of a page, from top to bottom, as a reader would.

Python runs in one namespace a page. Commands of bge-runtime run in this process, servers in
processes of their own, and requests of curl are sent to them. What a block prints is compared with
the block of text below it, and answers with the JSON below them.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import re
import shlex
import tomllib
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner

from bge_export.cli import main as bge_export
from bge_runtime.cli.doctor import main as bge_runtime
from bge_runtime.cli.embed import main as bge_embed
from bge_runtime.cli.rerank.command import main as bge_rerank
from bge_runtime.cli.serve import main as bge_serve
from tests.helpers.bundles import ROOT
from tests.helpers.guides import Block
from tests.helpers.servers import Server

ADDRESS = "http://localhost:8080"
"""Where the pages' servers are."""

RUN: dict[str, click.Command] = {
    "bge-embed": bge_embed,
    "bge-rerank": bge_rerank,
    "bge-runtime": bge_runtime,
}

_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")
_CLOSE = 0.02
"""A vector's numbers may differ by so much: a variant in bf16 may run."""


class Session:
    """A page that is being read."""

    def __init__(self, serve: Callable[[tuple[str, ...]], Server]) -> None:
        """Begin a page.

        Args:
            serve: Starts a server with the words of a command.
        """
        self._serve = serve
        self._names: dict[str, Any] = {"__name__": "page"}
        self._server: tuple[str, ...] = ("./bge-small-en-v1.5",)
        self._printed = ""
        self._answer: Any = None

    def run(self, block: Block) -> None:
        """Run a block, or compare it with what the one above it has printed."""
        if block.language == "python":
            self._printed = self._python(block)
        elif block.language == "bash":
            self._printed = "".join(map(self._command, _lines(block.text)))
        elif block.language in ("", "text") and self._printed:
            assert_printed(self._printed, block.text)
            self._printed = ""
        elif block.language == "json" and self._answer is not None:
            expected = json.loads(block.text.replace(", …", ""))
            assert like(self._answer, expected), self._answer
            if "error" in expected:
                assert self._answer == expected
            self._answer = None

    def _python(self, block: Block) -> str:
        code = block.text
        if ADDRESS in code:
            code = code.replace(ADDRESS, self._serve(self._server).url)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, block.page, "exec"), self._names)
        return printed.getvalue()

    def _command(self, line: str) -> str:
        """Run a line of a shell script, and return what it prints."""
        words = shlex.split(line, comments=True)
        name, given = words[0], None
        if "|" in words:  # tail -f FILE | COMMAND
            words, given = words[words.index("|") + 1 :], _text(words[words.index("|") - 1])
            name = words[0]
        for sign in ("<", "<<<"):
            if sign in words:
                at = words.index(sign)
                given = _text(words[at + 1]) if sign == "<" else f"{words[at + 1]}\n"
                words = words[:at]
        if name in RUN:
            arguments = [each for word in words[1:] for each in _matching(word)]
            result = CliRunner().invoke(RUN[name], arguments, input=given)
            assert result.exit_code == 0, f"{line}\n{result.stderr}"
            return result.stderr + result.stdout
        if name == "bge-serve":
            self._server = tuple(words[1:])
            _parse(bge_serve, words)
        elif name == "curl":
            self._ask(words)
        else:
            CHECKED[name](words)
        return ""

    def _ask(self, words: list[str]) -> None:
        """Send a request of curl."""
        _, url, _, header, _, body = words
        assert header == "content-type: application/json"
        assert url.startswith(ADDRESS)
        server = self._serve(self._server)
        answer = server.client.post(
            url.removeprefix(ADDRESS), content=body, headers={"content-type": "application/json"}
        )
        self._answer = answer.json()


def _lines(script: str) -> list[str]:
    """Return the commands of a script; a quoted string may span lines."""
    found, line = [], ""
    for part in script.replace("\\\n", " ").splitlines():
        line = f"{line}\n{part}" if line else part
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no closing quotation
            continue
        if words:
            found.append(line)
        line = ""
    assert not line, line
    return found


def _matching(word: str) -> list[str]:
    return sorted(glob.glob(word)) if "*" in word else [word]


def _text(file: str) -> str:
    with open(file, encoding="utf-8") as opened:
        return opened.read()


def like(found: Any, expected: Any) -> bool:
    """Return whether an answer has the keys and types of another; of lists, the first items."""
    if isinstance(expected, dict) and isinstance(found, dict):
        same = list(found) == list(expected)
        return same and all(like(found[name], expected[name]) for name in expected)
    if isinstance(expected, list) and isinstance(found, list):
        # Random weights may leave a text without lexical weights.
        return not found or like(found[0], expected[0])
    return type(found) is type(expected)


def assert_printed(found: str, expected: str) -> None:
    """Compare what was printed: words exactly, fractions roughly, counts and times not at all."""
    found, expected = (re.sub(r"/\S+", "/", text) for text in (found, expected))
    assert _NUMBER.sub("0", found).split() == _NUMBER.sub("0", expected).split()
    for left, right in zip(_NUMBER.findall(found), _NUMBER.findall(expected), strict=True):
        if "." in right and ":" not in right:
            assert float(left) == pytest.approx(float(right), abs=_CLOSE)


# -- Commands that are checked, but not run ------------------------------------------------


def _parse(command: click.Command, words: list[str]) -> None:
    """Parse a command's options, which fails for one that it does not have."""
    command.make_context(words[0], list(words[1:]), resilient_parsing="--help" in words)


def _check_pip(words: list[str]) -> None:
    assert words[1] == "install"
    for word in words[2:]:
        if match := re.fullmatch(r"(?:\.|bge-runtime)\[(.+)\]", word):
            assert set(match[1].split(",")) <= set(_EXTRAS), word


def _check_make(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def _check_bench(words: list[str]) -> None:
    from bge_bench.cli.main import main

    with click.Context(main) as context:
        name, command, arguments = main.resolve_command(context, words[1:])
        assert name is not None
        command.make_context(name, list(arguments))


CHECKED: dict[str, Callable[[list[str]], None]] = {
    "bge-export": lambda words: _parse(bge_export, words),
    "bge-bench": _check_bench,
    "pip": _check_pip,
    "make": _check_make,
}
"""Commands that are not run here, since they download or take long: other tests, and targets of
the Makefile, do. Their options, extras and targets are checked."""
