"""Options of commands that compute rows of a file or stream with a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_MODEL_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--revision", help="Branch, tag or commit on the hub."),
    click.option(
        "--device", "devices", multiple=True, help="Where to run; repeatable. Default: cpu."
    ),
    click.option("--engine", default="auto", show_default=True, help="Name of an engine."),
    click.option(
        "--precision", help="Name of a precision. Default: the fastest with verified parity."
    ),
    click.option("--threads", type=click.IntRange(1), help="Default: all usable processors."),
    click.option("--verbose", "-v", is_flag=True, help="Print the engine in force."),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model is opened, and how."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command
