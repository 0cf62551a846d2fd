"""Options that several commands of ``bge-bench`` share."""

from __future__ import annotations

from pathlib import Path

import click

checkpoint_option = click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The checkpoint that the bundle was made from. Default: the one it names.",
)
data_option = click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that holds the texts, and those that int8 baselines are calibrated on. Default: "
    "where `bge-bench data` puts them.",
)
device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Of all systems; cuda:0 for a GPU, where baselines compute in fp16.",
)
json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write everything measured to FILE; - prints it in place of the table.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="For all systems. Default: all usable CPUs."
)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    default=1800.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds to wait for an answer of a system.",
)
