"""Errors in one line, and results as JSON or a table, for all commands of ``bge-bench``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import click

from bge_bench.environment import describe_environment
from bge_runtime.bundle import Bundle
from bge_runtime.cli.command_line import command_line


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error as one line, and exit with 1; see `command_line`."""
    with command_line("bge-bench"):
        yield


def report(json_file: Path | None, bundle: Bundle, results: dict[str, Any], table: str) -> None:
    """Print a table, and write the full results to a file if one is given.

    Args:
        json_file: File for the results; ``-`` prints them instead of the table.
        bundle: The bundle that was measured.
        results: The numbers, ready for JSON; NaN and infinity become null.
        table: The same numbers as a table.
    """
    provenance = bundle.manifest.provenance
    source = PurePath(provenance.source)
    document = {
        **describe_environment(),
        "bundle": bundle.path.name,
        "model": bundle.manifest.model.name,
        "checkpoint": {
            # A local path means nothing to others; the hashes identify the weights.
            "source": source.name if source.is_absolute() else provenance.source,
            "random_seed": provenance.random_seed,
            "weights_sha256": provenance.weights_sha256,
        },
        **results,
    }
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if json_file == Path("-"):
        click.echo(text, nl=False)
        return
    if json_file is not None:
        try:
            json_file.write_text(text, encoding="utf-8")
        except OSError as error:
            click.echo(f"bge-bench: cannot write {json_file}: {error.strerror}", err=True)
            click.echo(table)
            sys.exit(1)
    click.echo(table)


def _finite(value: Any) -> Any:
    """Return a document with null for the numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
