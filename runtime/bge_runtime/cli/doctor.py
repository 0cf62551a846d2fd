"""``bge-runtime doctor``: report what is installed, what would run and why, and what is wrong."""

from __future__ import annotations

import sys

import click

from bge_runtime._version import __version__
from bge_runtime.cli.command_line import command_line
from bge_runtime.cli.doctor_checks import find_problems
from bge_runtime.cli.doctor_report import (
    STANDARD_REQUIREMENTS,
    choice_table,
    engine_table,
    machine_table,
)
from bge_runtime.cli.doctor_verify import verify_model
from bge_runtime.cli.speed.command import show_speed


@click.group(context_settings={"max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Inspect an installation of bge-runtime."""


@main.command()
@click.option(
    "--verify",
    "model",
    metavar="BUNDLE",
    help="Hash every file of a bundle and measure the parity of all its variants on this machine.",
)
@click.option(
    "--speed",
    "timed",
    metavar="BUNDLE",
    help="Measure the speed of all variants of a bundle on this machine, and tell which one is "
    "chosen, and why.",
)
@command_line("bge-runtime")
def doctor(model: str | None, timed: str | None) -> None:
    """Report what is installed, what would run and why, and what is wrong.

    The exit status is 1 if something has to be fixed.
    """
    click.echo(machine_table())
    click.echo("\n" + engine_table())
    if model is None and timed is None:
        click.echo("\n" + choice_table(STANDARD_REQUIREMENTS))
    findings = list(find_problems())
    if findings:
        click.echo()
    for finding in findings:
        click.echo(f"{'WRONG' if finding.wrong else 'note'}: {finding.text}")
    healthy = not any(finding.wrong for finding in findings)
    if model is not None:
        healthy = verify_model(model) and healthy
    if timed is not None:
        healthy = show_speed(timed) and healthy
    sys.exit(0 if healthy else 1)


if __name__ == "__main__":
    main()
