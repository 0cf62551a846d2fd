"""Reword the advice in error messages: Python arguments become options of the command."""

from __future__ import annotations

import ast
import os
import re
import shlex

import click

from bge_runtime.sources import FOR_PYTHON, OPENED_BY, RERANKER_CLASSES

_EXPORTER_OPTIONS = ("--pooling", "--trust-remote-code", "--model-class")
_RENAMED = {"pooling_method": "--pooling", "devices": "--device"}
_NAMES = (
    "pooling_method", "trust_remote_code", "model_class", "revision", "devices", "engine",
    "precision", "threads", "max_length", "truncate_dim", "batch_size",
)  # fmt: skip
_ARGUMENT = re.compile(rf"\b({'|'.join(_NAMES)})=('[^']*'|True|\d+)")

_JOB_OPTIONS = {
    "output_format": "--format", "return_sparse": "--sparse", "return_colbert_vecs": "--colbert",
    "return_dense": "--no-dense", "normalized": "--no-normalize",
    **{name: f"--{name.replace('_', '-')}" for name in (
        "batch_size", "chunk_tokens", "colbert_dtype", "dtype", "id", "input_format", "instruction",
        "keep", "max_length", "on_empty", "on_error", "overlap", "query", "rows_per_shard", "shard",
        "template", "text",
    )},
}  # fmt: skip
"""Arguments of bulk jobs, which only bge-embed has."""

_JOB_ARGUMENT = re.compile(
    rf"(?:\bmodel )?\b({'|'.join(_JOB_OPTIONS)})="
    r"('[^']*'|\[(?:'[^']*'(?:, )?)*\]|None|True|False|\d+)"
)
_JOB_NAME = re.compile(rf"\b({'|'.join(name for name in _JOB_OPTIONS if '_' in name)})\b(?!=)")
"""They are also reworded without a value, if they are no words of English."""

_COMMANDS = {
    opened_by: "bge-rerank" if model_class in RERANKER_CLASSES else "bge-embed"
    for model_class, opened_by in OPENED_BY.items()
}
_OPEN = re.compile(rf"\bOpen it with ({'|'.join(_COMMANDS)}), or with FlagAuto\w+")

_CLASSES = {opened_by: model_class for model_class, opened_by in OPENED_BY.items()}
_CLASS = re.compile(rf"\bopen it with ({'|'.join(_CLASSES)})\b")


def replace_arguments(message: str) -> str:
    """Return an error message with Python arguments replaced by options of the running command.

    All messages are worded for Python. Options that only the exporter has are called bge-export's.

    Args:
        message: For example ``"Pass pooling_method='cls'"``.

    Returns:
        For example ``"Pass --pooling cls"``; outside of a command, the message itself.
    """
    context = click.get_current_context(silent=True)
    if context is None or FOR_PYTHON in os.environ:
        return message
    known = {name for parameter in context.command.params for name in parameter.opts}

    def format_option(match: re.Match[str], option: str, value: str) -> str:
        text = option if value == "True" else f"{option} {shlex.quote(value)}"
        if option in known:
            return text
        return f"bge-export's {text}" if option in _EXPORTER_OPTIONS else match[0]

    def format_argument(match: re.Match[str]) -> str:
        name, value = match.groups()
        return format_option(
            match, _RENAMED.get(name, f"--{name.replace('_', '-')}"), value.strip("'")
        )

    def format_class(match: re.Match[str]) -> str:
        return f"pass {format_option(match, '--model-class', _CLASSES[match[1]])}"

    message = _OPEN.sub(lambda match: f"Run {_COMMANDS[match[1]]} with it", message)
    message = _ARGUMENT.sub(format_argument, _CLASS.sub(format_class, message))
    if "--rows-per-shard" not in known:
        return message
    message = _JOB_ARGUMENT.sub(lambda match: _format_job_option(*match.groups()), message)
    return _JOB_NAME.sub(lambda match: _JOB_OPTIONS[match[1]], message)


def _format_job_option(name: str, value: str) -> str:
    """Return how the command is given an argument of a job, by its ``repr``."""
    option, values = _JOB_OPTIONS[name], ast.literal_eval(value)
    if option.startswith("--no-"):
        values = not values
    if values is None or values is False or values == []:
        return f"no {option}"
    if values is True:
        return option
    listed = values if isinstance(values, list) else [values]
    return " ".join(f"{option} {shlex.quote(str(each))}" for each in listed)
