"""``bge-bench retrieval``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from bge_bench.cli.console import one_line_errors, report
from bge_bench.cli.options import checkpoint_option, data_option, json_option
from bge_bench.cli.progress import progress
from bge_bench.datasets.catalogue import DATASETS, data_folder
from bge_bench.experiments.retrieval import (
    SCORE_LIMITS,
    SCORE_REFERENCES,
    measure_retrieval,
    runnable_precisions,
)
from bge_bench.experiments.tasks import open_task
from bge_bench.reports.retrieval import retrieval_table
from bge_bench.systems.source import open_checkpoint
from bge_runtime.bundle import TOLERANCES, Bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@checkpoint_option
@data_option
@click.option(
    "--task",
    "names",
    multiple=True,
    default=("stsb-en", "xquad-en"),
    show_default=True,
    help=f"Repeatable. One of {', '.join(DATASETS)}; or a path: a folder in BEIR's form, or a CSV "
    "file of two sentences and a score a row.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(("auto", *TOLERANCES)),
    help="Repeatable. Default: auto, which is what users get who do not choose, and each that this "
    "machine can run.",
)
@click.option(
    "--reference",
    default=SCORE_REFERENCES[0],
    show_default=True,
    type=click.Choice(SCORE_REFERENCES),
    help="What computes PyTorch's scores, in fp32.",
)
@json_option
def retrieval(
    bundle: Path,
    checkpoint: Path | None,
    folder: Path | None,
    names: Sequence[str],
    precisions: Sequence[str],
    reference: str,
    json_file: Path | None,
) -> None:
    """Score search and similarity with the vectors of BUNDLE, and with PyTorch's.

    Exits with 1 where a score is further from PyTorch's than its precision may be.
    """
    with one_line_errors():
        opened = Bundle.open(bundle)
        place = folder or data_folder()
        tasks = [open_task(name, place) for name in dict.fromkeys(names)]
        asked = list(dict.fromkeys(precisions)) or ["auto", *runnable_precisions(opened)]
        steps = (1 + len(asked)) * len(tasks)
        with open_checkpoint(opened, checkpoint) as source, progress(steps) as step:
            result = measure_retrieval(
                opened, source, tasks, precisions=asked, reference=reference, step=step
            )
        document = {
            "tasks": [{"name": task.name, **task.counts, "sha256": task.sha256} for task in tasks],
            "query_instruction": opened.manifest.model.query_instruction,
            "reference": {"name": result.reference, "in_force": result.reference_in_force},
            "sides": [system.to_json() for system in result.systems],
            "limits": {name: asdict(limit) for name, limit in SCORE_LIMITS.items()},
            "passed": result.passed,
        }
        report(json_file, opened, document, retrieval_table(result))
    sys.exit(0 if result.passed else 1)
