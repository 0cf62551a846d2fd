"""``bge-bench data``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from bge_bench.cli.console import one_line_errors
from bge_bench.datasets.catalogue import DATASETS, data_folder, problems
from bge_bench.datasets.fetching import fetch
from bge_runtime.system import format_table


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--task",
    "names",
    multiple=True,
    type=click.Choice(tuple(DATASETS)),
    help="Repeatable. Default: all.",
)
@click.option(
    "--from",
    "given",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Fetch nothing, and verify the texts in this folder.",
)
def data(folder: Path | None, names: Sequence[str], given: Path | None) -> None:
    """Fetch the public texts that retrieval is measured on into FOLDER, and verify them.

    FOLDER is bge-runtime's cache if none is named. Exits with 1 where a text is not there as
    it was published.
    """
    if folder is not None and given is not None:
        raise click.UsageError("FOLDER is where to fetch to, and --from fetches nothing")
    chosen = [DATASETS[name] for name in dict.fromkeys(names) or DATASETS]
    place = given or folder or data_folder()
    wrong: dict[str, list[str]] = {}
    rows = [("task", "", "licence", "published at")]
    with one_line_errors():
        for dataset in chosen:
            if given is None:
                state = "fetched" if fetch(dataset, place) else "was there"
            elif found := problems(dataset, place):
                state, wrong[dataset.name] = "wrong", found
            else:
                state = "verified"
            rows.append((dataset.name, state, dataset.licence, dataset.url))
    click.echo(format_table(rows))
    for name, found in wrong.items():
        click.echo(f"bge-bench: {name} is not as it was published: {'; '.join(found)}", err=True)
    if wrong:
        sys.exit(1)
    click.echo(f"\nThey are for `bge-bench retrieval BUNDLE --data {place}`.")
