"""``bge-bench gpu``: all measurements on a GPU, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bge_bench.cli.options import checkpoint_option, data_option, threads_option, timeout_option
from bge_bench.cli.tables import GPU_BATCH_SIZES, cold_start, latency, memory, throughput
from bge_bench.datasets.catalogue import DATASETS, check, data_folder
from bge_bench.errors import BenchError
from bge_bench.systems.base import GPU_BASELINES
from bge_bench.workers.pool import Pool
from bge_runtime.cli.command_line import command_line

_TEXTS = 100_000
_CORPUS = {"sample": 200, "batch_sizes": GPU_BATCH_SIZES, "count": 10_000}
_NATURAL, _DATASET = "natural-throughput", "xquad-en"
_TABLES: dict[str, tuple[click.Command, dict[str, Any]]] = {
    _NATURAL: (throughput, _CORPUS | {"named": [_DATASET, f"{_DATASET}-questions"]}),
    "full-throughput": (throughput, _CORPUS | {"named": ["full"], "count": 2_000}),
    "mixed-throughput": (throughput, _CORPUS | {"named": ["mixed"]}),
    "latency": (latency, {"budget_s": 1.5}),
    "memory": (memory, {"count": _TEXTS, "baselines": ()}),
    "cold-start": (cold_start, {}),
}
"""The tables in the order of the run, each with its own options."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=".",
    help="Folder for the results in JSON. Default: here.",
)  # fmt: skip
@checkpoint_option
@click.option("--device", default="cuda:0", show_default=True, metavar="NAME")
@click.option(
    "--baseline", "baselines", multiple=True, default=GPU_BASELINES,
    type=click.Choice(GPU_BASELINES), help=f"Repeatable. Default: {', '.join(GPU_BASELINES)}.",
)  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--calls", default=100, show_default=True, type=click.IntRange(min=1),
    help="Of each kind, for latency.",
)  # fmt: skip
@click.option(
    "--only", multiple=True, type=click.Choice(tuple(_TABLES)), help="Repeatable. Default: all.",
)  # fmt: skip
@data_option
@threads_option
@timeout_option
@click.pass_context
@command_line("bge-bench")
def gpu(
    context: click.Context,
    /,
    bundle: Path,
    output: Path,
    baselines: Sequence[str],
    only: Sequence[str],
    calls: int,
    folder: Path | None,
    **options: Any,
) -> None:
    """Time a bundle on a GPU: natural, full and mixed lengths, single texts; memory and start.

    Baselines compute in fp16, each with its best batch size. Parity is measured with each
    corpus, on the GPU, against PyTorch in fp32.
    """
    output.mkdir(parents=True, exist_ok=True)
    common = {"bundle": bundle, "baselines": baselines, "precisions": (), **options}

    def measure(name: str, **more: Any) -> None:
        command, given = _TABLES[name]
        click.echo(f"\n{name}")
        json_file = output / f"gpu-{name}.json"
        context.invoke(command, **{**common, **given, **more, "json_file": json_file})

    wanted = [name for name in _TABLES if name in (only or _TABLES)]
    if _NATURAL in wanted and not _can_be_read(folder):
        wanted.remove(_NATURAL)
    with Pool() as pool:
        for name in wanted:
            if _TABLES[name][0] is throughput:
                measure(name, pool=pool, folder=folder)
            elif _TABLES[name][0] is latency:
                measure(name, pool=pool, calls=calls)
    # The others need new processes, and no other process beside them.
    for name in wanted:
        if _TABLES[name][0] in (memory, cold_start):
            measure(name)


def _can_be_read(folder: Path | None) -> bool:
    try:
        check(DATASETS[_DATASET], folder or data_folder())
    except BenchError as error:
        click.echo(f"\n{_NATURAL} is left out: {error}")
        return False
    return True
