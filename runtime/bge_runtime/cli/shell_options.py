"""Reword the advice in error messages: Python arguments become options of the command."""

from __future__ import annotations

import os
import re
import shlex

import click

from bge_runtime.sources import FOR_PYTHON, OPENED_BY

_EXPORTER_OPTIONS = ("--pooling", "--trust-remote-code", "--model-class")
_RENAMED = {"pooling_method": "--pooling", "devices": "--device"}
_NAMES = (
    "pooling_method", "trust_remote_code", "model_class", "revision", "devices", "engine",
    "precision", "threads", "max_length", "truncate_dim", "batch_size",
)  # fmt: skip
_ARGUMENT = re.compile(rf"\b({'|'.join(_NAMES)})=('[^']*'|True|\d+)")

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

    return _ARGUMENT.sub(format_argument, _CLASS.sub(format_class, message))
