"""``bge-bench checkpoint``."""

from __future__ import annotations

from pathlib import Path

import click

from bge_bench.cli.console import one_line_errors
from bge_bench.errors import BenchError
from bge_bench.systems.base import quiet


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--layers", type=click.IntRange(min=1), help="Fewer than the model has.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder to take the tokenizer from. Default: one is made.",
)  # fmt: skip
def checkpoint(
    model: str, folder: Path, layers: int | None, seed: int, tokenizer: Path | None
) -> None:
    """Write the checkpoint that `bge-export MODEL --random-weights` makes, to keep it.

    The other commands take it with --checkpoint, and need not make it again each time.
    """
    with one_line_errors(), quiet():
        from bge_export.synthetic import find_random_model, write_random_checkpoint

        facts = find_random_model(model)
        if folder.exists():
            raise BenchError(f"{folder} is already there; name another folder, or remove it")
        # Renamed once it is whole: it may be cut off.
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True)
        write_random_checkpoint(facts, part, seed=seed, tokenizer=tokenizer, layers=layers)
        part.rename(folder)
