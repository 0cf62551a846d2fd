"""Advice is in the words of the caller: Python's arguments, or options of a command."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import bge_export
import bge_runtime
from bge_export import cli as exporter
from bge_runtime.cli import doctor, embed, serve
from bge_runtime.cli.shell_options import replace_arguments
from bge_runtime.sources import FOR_PYTHON
from tests.helpers.sources import texts_of

MESSAGES = [
    ("Pass pooling_method='cls' or so", "--pooling cls", "bge-export's --pooling cls"),
    ("pass trust_remote_code=True if", "--trust-remote-code", "bge-export's --trust-remote-code"),
    ("model_class='a-b'", "--model-class a-b", "bge-export's --model-class a-b"),
    ("revision='v 1' is for Hub IDs", "--revision 'v 1'", "--revision 'v 1'"),
    ("Pass precision='fp32', or", "--precision fp32", "--precision fp32"),
    ("Pass devices='cpu'; or", "Pass devices='cpu'; or", "--device cpu"),
    (
        "or open it with FlagModel for",
        "pass --model-class encoder-only-base",
        "pass bge-export's --model-class encoder-only-base",
    ),
    (
        "Open it with FlagModel, or with FlagAutoModel",
        "Run bge-embed with it",
        "Run bge-embed with it",
    ),
    (
        "Open it with FlagLLMReranker, or with FlagAutoReranker",
        "Run bge-rerank with it",
        "Run bge-rerank with it",
    ),
    ("leave it out", "leave it out", "leave it out"),
    ("folder/precision=x is no model", "precision=x", "precision=x"),
]


def reworded(command: click.Command, message: str) -> str:
    with click.Context(command):
        return replace_arguments(message)


@pytest.mark.parametrize(("message", "exporting", "embedding"), MESSAGES)
def test_arguments_become_options_of_the_command_that_runs(message, exporting, embedding):
    assert replace_arguments(message) == message
    assert exporting in reworded(exporter.main, message)
    assert embedding in reworded(embed.main, message)
    if exporting != message:
        assert not re.search(r"\w=['T]", reworded(exporter.main, message))


@pytest.mark.parametrize(
    ("message", "embedding"),
    [
        ("with rows_per_shard=16384, and now rows_per_shard=5", "--rows-per-shard 16384, and now"),
        ("text=['text'], and now text=['a b', 'c']", "--text text, and now --text 'a b' --text c"),
        ("with id=None, and now id='key'", "with no --id, and now --id key"),
        ("keep=[], and now keep=['x']", "no --keep, and now --keep x"),
        ("return_sparse=False, and now return_sparse=True", "no --sparse, and now --sparse"),
        ("normalized=True, and now normalized=False", "no --no-normalize, and now --no-norm"),
        ("Pass on_error='skip' to leave", "Pass --on-error skip to leave"),
        ("name it with input_format, or", "name it with --input-format, or"),
        ("output_format='npy' holds", "--format npy holds"),
        ("pass a smaller chunk_tokens", "pass a smaller --chunk-tokens"),
        ("the text of an id, and a template", "the text of an id, and a template"),
    ],
)
def test_arguments_of_a_job_become_options_of_bge_embed_alone(message, embedding):
    assert embedding in reworded(embed.main, message)
    assert reworded(serve.main, message) == message


def test_an_export_for_a_program_keeps_the_arguments_of_python(monkeypatch):
    monkeypatch.setenv(FOR_PYTHON, "1")
    assert reworded(exporter.main, "Pass pooling_method='cls'") == "Pass pooling_method='cls'"


def test_arguments_without_an_option_stay_as_they_are():
    assert reworded(doctor.main, "pass engine='openvino'") == "pass engine='openvino'"
    assert reworded(doctor.main, "pooling_method='cls'") == "bge-export's --pooling cls"


OPTION = re.compile(r"--(pooling|trust-remote-code|model-class|revision)\b")
COMMANDS = ("bge-export ", "hf download")


def test_no_error_is_worded_for_a_shell():
    folders = [Path(package.__file__).parent for package in (bge_runtime, bge_export)]
    paths = [path for folder in folders for path in folder.rglob("*.py") if path.name != "cli.py"]
    assert len(paths) > 50
    found = [
        f"{path.name}: {text}"
        for path in paths
        for text in texts_of(path, hole="")
        # Alone it is a part of a command that is run or shown.
        if OPTION.search(text)
        and not OPTION.fullmatch(text.strip())
        and not any(command in text for command in COMMANDS)
        and "shell_options" not in path.name
    ]
    assert found == []
