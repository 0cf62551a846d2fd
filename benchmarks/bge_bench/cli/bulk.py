"""``bge-bench bulk``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from bge_bench.cli.console import one_line_errors, report
from bge_bench.cli.options import data_option, json_option, threads_option
from bge_bench.cli.progress import progress
from bge_bench.datasets.named import named_texts
from bge_bench.environment import busy_percent
from bge_bench.experiments.bulk import BulkPlan, measure_bulk
from bge_bench.reports.bulk import bulk_table
from bge_runtime.bundle import Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--texts", "named", multiple=True, default=("xquad-en", "stsb-en"),
    show_default=True, help="As in bge-bench throughput, repeated up to --rows. Repeatable.",
)  # fmt: skip
@data_option
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(min=1),
    help="The job and encode take turns, each with a share of the shards.",
)  # fmt: skip
@click.option("--precision", help="Of both. Default: the fastest with verified parity.")
@click.option("--sparse", is_flag=True, help="Also write lexical weights, for BGE-M3.")
@click.option("--colbert", is_flag=True, help="Also write ColBERT vectors, for BGE-M3.")
@click.option(
    "--folder", "place", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where to write input and output, in a new folder. Default: the temporary folder.",
)  # fmt: skip
@threads_option
@json_option
def bulk(
    bundle: Path,
    named: Sequence[str],
    folder: Path | None,
    rows: int,
    rounds: int,
    precision: str | None,
    sparse: bool,
    colbert: bool,
    place: Path | None,
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Embed a Parquet file of --rows rows, beside `encode` on the same texts in memory."""
    with one_line_errors():
        opened = Bundle.open(bundle)
        busy = busy_percent()
        plan = BulkPlan(
            bundle=bundle,
            texts=named_texts(named, folder),
            rows=rows,
            rounds=rounds,
            threads=threads,
            precision=precision,
            outputs={"return_sparse": True} if sparse else {},
        )
        if colbert:
            plan.outputs["return_colbert_vecs"] = True
        with (
            tempfile.TemporaryDirectory(prefix="bge-bench-bulk-", dir=place) as name,
            progress(2 * rounds + 2) as step,
        ):
            result = measure_bulk(plan, Path(name), step)
        document = {"texts": list(named), "busy_percent": busy, **result}
        report(json_file, opened, document, bulk_table(document))
