"""Open what the commands of `bge_bench.cli.tables` need, measure, and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from bge_bench.cli.console import one_line_errors, report
from bge_bench.cli.options import (
    checkpoint_option,
    device_option,
    json_option,
    threads_option,
    timeout_option,
)
from bge_bench.cli.progress import progress
from bge_bench.datasets.named import calibration_texts
from bge_bench.environment import busy_percent
from bge_bench.experiments.roofline import measure_rates
from bge_bench.reports.tables import document_tables
from bge_bench.systems.base import ALL_BASELINES, Item, SystemSpec, as_passages
from bge_bench.systems.int8_models import int8_model
from bge_bench.systems.lineup import Candidate, line_up
from bge_bench.systems.source import open_checkpoint
from bge_bench.workers.journal import Journal, header_of
from bge_bench.workers.pool import Pool, Settings, Step
from bge_runtime.bundle import Bundle
from bge_runtime.encoding import PairTokenizer, TextTokenizer
from bge_runtime.sources import RERANKER_CLASSES
from bge_runtime.system import usable_cpus


@dataclass(frozen=True, kw_only=True)
class TableRun:
    """A table in progress.

    Attributes:
        bundle: The bundle.
        checkpoint: Folder of its checkpoint.
        candidates: The systems that are compared.
        left_out: The reason for each system that is not, by name.
        settings: Settings of all measurements.
        tokenizer: The bundle's tokenizer.
        max_length: Most tokens of a text.
        threads: Threads of each system.
        device: Device of all systems.
    """

    bundle: Bundle
    checkpoint: Path
    candidates: list[Candidate]
    left_out: dict[str, str]
    settings: Settings
    tokenizer: TextTokenizer
    max_length: int
    threads: int
    device: str

    @property
    def reference(self) -> SystemSpec:
        """The system whose vectors all are compared with: PyTorch in fp32, one text at a time."""
        return replace(
            self.candidates[0].spec,
            system="transformers",
            model=str(self.checkpoint.absolute()),
            precision="fp32",
            batch_size=1,
        )

    def items(self, texts: Sequence[str]) -> list[Item]:
        """Return texts as the systems take them: a reranker's as passages of one query."""
        return as_passages(texts) if self.candidates[0].spec.reranks else list(texts)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the number of tokens of each text or pair."""
        rows = self.tokenizer.encode(
            [item for item in items if isinstance(item, str)], max_length=self.max_length
        )
        pairs = [item for item in items if not isinstance(item, str)]
        if pairs:
            rows += PairTokenizer(self.tokenizer, token_types=False).encode(
                *zip(*pairs, strict=True),
                max_length=self.max_length,
                query_max_length=self.max_length * 3 // 4,
            )
        return [len(ids) for ids in rows]

    def matrix_rates(self, when: str) -> dict[str, float]:
        """Return the machine's matrix rates, measured once for all tables of a pool."""
        pool, journal = self.settings.pool, self.settings.journal
        if pool is not None and pool.rates:
            return pool.rates
        self.settings.step("the machine's matrix rate")
        found: dict[str, float] = journal.get(
            f"rates {when}", lambda: measure_rates(self.threads, self.device)
        )
        if pool is not None:
            pool.rates = found
        return found

    def without_failed(self, pool: Pool) -> TableRun:
        """Start all processes of a pool at once, and leave out the baselines that fail to start.

        Time on a rented GPU is short: one broken baseline must not cost the others theirs.

        Raises:
            BenchError: If bge-runtime or the reference does not start.
        """
        self.settings.step("all processes: start")
        specs = [*(candidate.spec for candidate in self.candidates), self.reference]
        failed = {}
        errors = pool.start(specs, timeout_s=self.settings.timeout_s)
        for candidate, error in zip([*self.candidates, None], errors, strict=True):
            if error is None:
                continue
            if candidate is None or candidate.ours:
                raise error
            # How it ended, and the last line that it wrote.
            lines = str(error).split("\n")
            failed[candidate.label] = " … ".join(dict.fromkeys((lines[0], lines[-1].strip())))
        return replace(
            self,
            candidates=[each for each in self.candidates if each.label not in failed],
            left_out=self.left_out | failed,
        )


def table_options(*, rounds: int, baselines: Sequence[str]) -> Callable[[Any], Any]:
    """Return a decorator that adds the options of every table, with these defaults."""
    options = [
        click.argument("bundle", type=click.Path(path_type=Path)),
        checkpoint_option,
        device_option,
        click.option(
            "--baseline",
            "baselines",
            multiple=True,
            default=baselines,
            type=click.Choice(ALL_BASELINES),
            help=f"Repeatable. Default: {', '.join(baselines)}.",
        ),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            type=click.Choice(("fp32", "bf16", "fp16", "int8")),
            help="Of the bundle; repeatable. Default: all it has that this machine runs.",
        ),
        threads_option,
        click.option("--rounds", default=rounds, show_default=True, type=click.IntRange(min=1)),
        timeout_option,
        json_option,
    ]

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


texts_option = click.option(
    "--texts",
    "named",
    multiple=True,
    default=["mixed"],
    show_default=True,
    help="'mixed' (4 to 500 words, made here), 'full' (each longer than 512 tokens), the passages "
    "of a dataset of bge-bench data, such as xquad-en, its questions, xquad-en-questions, or a "
    "file with a text a line. Repeatable.",
)


def is_reranker(bundle: Path) -> bool:
    """Return whether a bundle is a reranker's, which is measured on pairs."""
    return Bundle.open(bundle).manifest.model.model_class in RERANKER_CLASSES


def run_table(
    kind: str,
    bundle: Path,
    options: dict[str, Any],
    work: dict[str, Any],
    measure: Callable[[TableRun], dict[str, Any]],
) -> None:
    """Measure one table, and report it.

    Args:
        kind: Kind of the table.
        bundle: Folder of the bundle.
        options: Values of the options that all tables have.
        work: Further values that identify the measured work.
        measure: Returns the measurements, ready for JSON.
    """
    with one_line_errors():
        opened = Bundle.open(bundle)
        busy = busy_percent()
        with (
            open_checkpoint(opened, options["checkpoint"]) as folder,
            progress(None) as step,
        ):
            run = _prepare(kind, opened, folder, options, work, step)
            before, measured, after = (
                run.matrix_rates("before"),
                measure(run),
                run.matrix_rates("after"),
            )
        journal = run.settings.journal
        document = {
            "kind": kind,
            "threads": run.threads,
            "device": run.device,
            "rounds": run.settings.rounds,
            "busy_percent_before": journal.get("busy", lambda: busy),
            # The higher rate: other programs may have used the machine at either time.
            "matrix_rate_flops": {
                name: max(rate, after.get(name, rate)) for name, rate in before.items()
            },
            "left_out": run.left_out,
            **measured,
        }
        report(options["json_file"], opened, document, document_tables(document))
        journal.close()


def _prepare(
    kind: str,
    bundle: Bundle,
    checkpoint: Path,
    options: dict[str, Any],
    work: dict[str, Any],
    step: Step,
) -> TableRun:
    """Line up the candidates, and open the journal; arguments of `run_table`."""
    threads, device = options["threads"] or usable_cpus(), options["device"]
    pool: Pool | None = options.get("pool")
    candidates, left_out = line_up(
        bundle,
        checkpoint,
        baselines=options["baselines"],
        threads=threads,
        precisions=options["precisions"],
        device=device,
        cuda_graphs=kind == "latency",
        no_parallel_batches=options.get("no_parallel_batches", False),
        int8_model=partial(
            int8_model, bundle, checkpoint, calibration_texts(options["folder"]), step
        ),
    )
    header = header_of(
        kind,
        bundle,
        labels=[candidate.label for candidate in candidates],
        threads=threads,
        device=device,
        rounds=options["rounds"],
        **work,
    )
    run = TableRun(
        bundle=bundle,
        checkpoint=checkpoint,
        candidates=candidates,
        left_out=left_out,
        settings=Settings(
            journal=Journal.beside(options["json_file"], header),
            step=step,
            rounds=options["rounds"],
            timeout_s=options["timeout_s"],
            pool=pool,
        ),
        tokenizer=TextTokenizer(bundle.tokenizer_file),
        max_length=min(bundle.manifest.model.max_length, 512),
        threads=threads,
        device=device,
    )
    return run if pool is None else run.without_failed(pool)
