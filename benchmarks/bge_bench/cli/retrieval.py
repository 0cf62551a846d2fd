"""``bge-bench retrieval``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from bge_bench.cli.console import one_line_errors, report
from bge_bench.cli.options import checkpoint_option, data_option, json_option
from bge_bench.cli.progress import progress
from bge_bench.datasets.catalogue import DATASETS, data_folder
from bge_bench.datasets.named import calibration_texts
from bge_bench.errors import BenchError
from bge_bench.experiments.retrieval import (
    SCORE_LIMITS,
    SCORE_REFERENCES,
    instruction,
    measure_retrieval,
    runnable_precisions,
)
from bge_bench.experiments.tasks import RerankingTask, RetrievalTask, Task, Values, open_task
from bge_bench.reports.retrieval import retrieval_table
from bge_bench.systems.base import BASELINES, INT8_BASELINES, open_system
from bge_bench.systems.int8_models import int8_model
from bge_bench.systems.lineup import our_system
from bge_bench.systems.source import open_checkpoint
from bge_runtime.bundle import TOLERANCES, Bundle
from bge_runtime.system import usable_cpus


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
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice((*BASELINES, *INT8_BASELINES)),
    help="Repeatable; measured beside BUNDLE, with the batch size that it comes with, and not "
    "judged.",
)
@click.option(
    "--rerank",
    type=click.Path(path_type=Path),
    help="Bundle of a reranker, which orders what BUNDLE found; its scores are judged then.",
)
@click.option(
    "--rerank-checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The checkpoint that the reranker was made from, as --checkpoint.",
)
@click.option(
    "--top",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Passages of each question to rerank.",
)
@click.option(
    "--questions",
    type=click.IntRange(min=2),
    help="Rerank for so many questions only, evenly spaced over all.",
)
@json_option
def retrieval(
    bundle: Path,
    checkpoint: Path | None,
    folder: Path | None,
    names: Sequence[str],
    precisions: Sequence[str],
    reference: str,
    baselines: Sequence[str],
    rerank: Path | None,
    rerank_checkpoint: Path | None,
    top: int,
    questions: int | None,
    json_file: Path | None,
) -> None:
    """Score search and similarity with the vectors of BUNDLE, and with PyTorch's.

    With --rerank: score what a reranker makes of a search. Exits with 1 where a score is further
    from PyTorch's than its precision may be.
    """
    with one_line_errors():
        opened = Bundle.open(bundle)
        place = folder or data_folder()
        tasks = [open_task(name, place) for name in dict.fromkeys(names)]
        more: dict[str, Any] = {}
        before: dict[str, Values] = {}
        if rerank is not None:
            found = _search(opened, tasks, top=top, questions=questions)
            more = {"search": opened.path.name, "top": top}
            before = {task.name: task.before for task in found}
            tasks = [*found]
            opened, checkpoint = Bundle.open(rerank), rerank_checkpoint
        asked = list(dict.fromkeys(precisions)) or ["auto", *runnable_precisions(opened)]
        steps = (1 + len(asked) + len(baselines)) * len(tasks)
        with open_checkpoint(opened, checkpoint) as source, progress(steps) as step:
            result = measure_retrieval(
                opened,
                source,
                tasks,
                precisions=asked,
                reference=reference,
                baselines=list(dict.fromkeys(baselines)),
                int8_model=partial(
                    int8_model, opened, source, calibration_texts(folder), lambda _: None
                ),
                step=step,
            )
        document = {
            **more,
            "before": {
                task: {name: float(values.mean()) for name, values in scores.items()}
                for task, scores in before.items()
            },
            "tasks": [{"name": task.name, **task.counts, "sha256": task.sha256} for task in tasks],
            "query_instruction": opened.manifest.model.query_instruction,
            "reference": {"name": result.reference, "in_force": result.reference_in_force},
            "sides": [system.to_json() for system in result.systems],
            "limits": {name: asdict(limit) for name, limit in SCORE_LIMITS.items()},
            "passed": result.passed,
        }
        report(json_file, opened, document, retrieval_table(result, before))
    sys.exit(0 if result.passed else 1)


def _search(
    bundle: Bundle, tasks: Sequence[Task], *, top: int, questions: int | None
) -> list[RerankingTask]:
    """Return tasks of what a bundle finds, in the precision that it chooses."""
    others = [task.name for task in tasks if not isinstance(task, RetrievalTask)]
    if others:
        raise BenchError(
            f"{', '.join(others)} has no search to rerank; name retrieval with --task, such as "
            "xquad-en"
        )
    system = open_system(our_system(bundle, threads=usable_cpus()))
    instruct = instruction(bundle.manifest.model)
    return [
        RerankingTask(task, system, instruct, depth=top, most=questions)
        for task in tasks
        if isinstance(task, RetrievalTask)
    ]
