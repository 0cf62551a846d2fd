"""``bge-bench throughput``, ``latency``, ``cold-start``, ``scaling`` and ``memory``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bge_bench.cli.console import one_line_errors, report
from bge_bench.cli.options import (
    checkpoint_option,
    data_option,
    device_option,
    json_option,
    threads_option,
    timeout_option,
)
from bge_bench.cli.progress import progress
from bge_bench.datasets.catalogue import DATASETS
from bge_bench.datasets.corpus import paragraphs, read_texts, short_texts, spread_sample
from bge_bench.datasets.data import load_passages, load_questions
from bge_bench.environment import busy_percent
from bge_bench.experiments.roofline import measure_rates, needed_flop
from bge_bench.experiments.timing import (
    measure_cold_start,
    measure_latency,
    measure_memory,
    measure_scaling,
    measure_throughput,
)
from bge_bench.reports.tables import document_tables
from bge_bench.systems.base import BASELINES, GPU_BASELINES, SideSpec
from bge_bench.systems.lineup import FASTEST, Entrant, line_up
from bge_bench.systems.source import open_checkpoint
from bge_bench.workers.journal import Journal, fingerprint, header_of
from bge_bench.workers.pool import Pool, Settings
from bge_runtime.bundle import Bundle
from bge_runtime.encoding import TextTokenizer
from bge_runtime.system import usable_cpus

_MIXED = 1000
_FULL, _FULL_WORDS = "full", 700
_SAMPLE = 100
_BATCH_SIZES = (2, 8, 32)
GPU_BATCH_SIZES = (32, 128, 512)
"""Out of which a baseline gets the best on a GPU."""
_LENGTHS = (8, 16, 32, 64, 128, 256, 512)
_BATCHES = ((4, 32), (16, 32), (32, 32), (32, 128))
_CHUNK = 1000
_QUESTIONS = "-questions"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What a command has at hand.

    Attributes:
        bundle: The bundle.
        checkpoint: Its checkpoint.
        entrants: Who takes part.
        settings: What all measures share.
        tokenizer: The bundle's.
        max_length: Most tokens of a text.
    """

    bundle: Bundle
    checkpoint: Path
    entrants: list[Entrant]
    settings: Settings
    tokenizer: TextTokenizer
    max_length: int

    @property
    def reference(self) -> SideSpec:
        """What computes the vectors that all are held against, one text at a time."""
        return replace(
            self.entrants[0].spec,
            side="transformers",
            model=str(self.checkpoint.absolute()),
            precision="fp32",
            batch_size=1,
        )

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of texts."""
        return [len(ids) for ids in self.tokenizer.encode(texts, max_length=self.max_length)]


def _not_started(run: _Run, pool: Pool) -> dict[str, str]:
    """Start all processes of a pool at once, and tell which baselines do not start, and why.

    A lease of a GPU is short: one that is broken there is not to cost the others theirs.

    Raises:
        BenchError: If ours, or what all are held against, does not start.
    """
    run.settings.step("all processes: start")
    specs = [*(entrant.spec for entrant in run.entrants), run.reference]
    failed = {}
    errors = pool.start(specs, timeout_s=run.settings.timeout_s)
    for entrant, error in zip([*run.entrants, None], errors, strict=True):
        if error is None:
            continue
        if entrant is None or entrant.ours:
            raise error
        # How it ended, and the last of its last words.
        lines = str(error).split("\n")
        failed[entrant.label] = " … ".join(dict.fromkeys((lines[0], lines[-1].strip())))
    return failed


def _options(*, rounds: int, baselines: Sequence[str]) -> Callable[[Any], Any]:
    options = [
        click.argument("bundle", type=click.Path(path_type=Path)),
        checkpoint_option,
        device_option,
        click.option(
            "--baseline",
            "baselines",
            multiple=True,
            default=baselines,
            type=click.Choice(tuple(dict.fromkeys((*BASELINES, *GPU_BASELINES)))),
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


_texts_option = click.option(
    "--texts",
    "named",
    multiple=True,
    default=["mixed"],
    show_default=True,
    help="'mixed' (4 to 500 words, made here), 'full' (each longer than 512 tokens), the passages "
    "of a dataset of bge-bench data, such as xquad-en, its questions, xquad-en-questions, or a "
    "file with a text a line. Repeatable.",
)


def _texts(named: Sequence[str], folder: Path | None, count: int | None = None) -> list[str]:
    texts: list[str] = []
    for name in named:
        if name == "mixed":
            texts += paragraphs(_MIXED)
        elif name == _FULL:
            texts += short_texts(_MIXED, words=_FULL_WORDS)
        elif name.removesuffix(_QUESTIONS) in DATASETS:
            read = load_questions if name.endswith(_QUESTIONS) else load_passages
            texts += read(name.removesuffix(_QUESTIONS), folder)
        else:
            texts += read_texts(Path(name))
    return texts if count is None else _numbered(texts, count)


def _numbered(texts: Sequence[str], count: int) -> list[str]:
    """Give so many texts, repeated behind a number of their own."""
    return [f"{number} {texts[number % len(texts)]}" for number in range(count)]


def _measure(
    kind: str,
    bundle: Path,
    options: dict[str, Any],
    what: dict[str, Any],
    results: Callable[[_Run], dict[str, Any]],
) -> None:
    """Open what a measure needs, measure, and report.

    Args:
        kind: Of the table.
        bundle: Folder of the bundle.
        options: Those that all commands have.
        what: Those that identify the work, beside them.
        results: Measures.
    """
    with one_line_errors():
        opened = Bundle.open(bundle)
        busy = busy_percent()
        threads = options["threads"] or usable_cpus()
        pool: Pool | None = options.get("pool")
        json_file: Path | None = options["json_file"]
        with (
            open_checkpoint(opened, options["checkpoint"]) as folder,
            progress(None) as step,
        ):
            entrants, left_out = line_up(
                opened,
                folder,
                baselines=options["baselines"],
                threads=threads,
                precisions=options["precisions"],
                device=options["device"],
                cuda_graphs=kind == "latency",
                one_by_one=options.get("one_by_one", False),
            )
            header = header_of(
                kind,
                opened,
                labels=[entrant.label for entrant in entrants],
                threads=threads,
                device=options["device"],
                rounds=options["rounds"],
                **what,
            )
            journal = Journal.beside(json_file, header)
            run = _Run(
                bundle=opened,
                checkpoint=folder,
                entrants=entrants,
                settings=Settings(
                    journal=journal,
                    step=step,
                    rounds=options["rounds"],
                    timeout_s=options["timeout_s"],
                    pool=pool,
                ),
                tokenizer=TextTokenizer(opened.tokenizer_file),
                max_length=min(opened.manifest.model.max_length, 512),
            )
            if pool is not None:
                failed = _not_started(run, pool)
                left_out |= failed
                run = replace(run, entrants=[e for e in entrants if e.label not in failed])

            def rates(when: str) -> dict[str, float]:
                if pool is not None and pool.rates:
                    return pool.rates
                step("the machine's matrix rate")
                found: dict[str, float] = journal.get(
                    f"rates {when}", lambda: measure_rates(threads, options["device"])
                )
                if pool is not None:
                    pool.rates = found
                return found

            before, measured, after = rates("before"), results(run), rates("after")
        document = {
            "kind": kind,
            "threads": threads,
            "device": options["device"],
            "rounds": options["rounds"],
            "busy_percent_before": journal.get("busy", lambda: busy),
            # What the machine can do: others may have kept it busy at either time.
            "matrix_rate_flops": {
                name: max(rate, after.get(name, rate)) for name, rate in before.items()
            },
            "left_out": left_out,
            **measured,
        }
        report(json_file, opened, document, document_tables(document))
        journal.close()


@click.command()
@_options(rounds=3, baselines=[name for name in BASELINES if name != "onnxruntime"])
@_texts_option
@data_option
@click.option(
    "--sample", default=_SAMPLE, show_default=True, type=click.IntRange(min=2),
    help="Texts that the slow baselines are timed on; taken evenly over all, by length.",
)  # fmt: skip
@click.option(
    "--batch-size", "batch_sizes", multiple=True, default=_BATCH_SIZES, show_default=True,
    type=click.IntRange(min=1), help="Repeatable; each baseline gets the best of them.",
)  # fmt: skip
@click.option(
    "--count", type=click.IntRange(min=2),
    help="So many texts: those named, repeated behind a number of their own.",
)  # fmt: skip
@click.option(
    "--one-by-one", is_flag=True,
    help="On a CPU, time ours once more with one batch at a time (parallel_batches=False).",
)  # fmt: skip
def throughput(
    bundle: Path,
    named: Sequence[str],
    folder: Path | None,
    sample: int,
    batch_sizes: Sequence[int],
    count: int | None,
    **options: Any,
) -> None:
    """Time all entrants on a corpus, vectors held against PyTorch's."""

    def results(run: _Run) -> dict[str, Any]:
        lengths = run.lengths(texts)
        config = json.loads((run.bundle.path / "config.json").read_text("utf-8"))
        model = run.bundle.manifest.model
        by_length = [texts[i] for i in sorted(range(len(texts)), key=lengths.__getitem__)]
        chosen = spread_sample(by_length, sample)
        random.Random(0).shuffle(chosen)  # noqa: S311  # callers do not sort
        rows = measure_throughput(
            run.entrants,
            run.reference,
            texts,
            chosen,
            batch_sizes=batch_sizes,
            settings=run.settings,
        )
        return {
            "texts": [*named],
            "repeated_to": count,
            **{
                part: {
                    "texts": len(part_texts),
                    "tokens": sum(part_lengths),
                    "flop": needed_flop(config, model.pooling, part_lengths),
                }
                for part, part_texts, part_lengths in (
                    ("full", texts, lengths),
                    ("sample", chosen, run.lengths(chosen)),
                )
            },
            "rows": rows,
        }

    with one_line_errors():
        texts = _texts(named, folder, count)
    what = {"texts": fingerprint(texts), "sample": sample, "batch_sizes": list(batch_sizes)}
    _measure("throughput", bundle, options, what, results)


@click.command()
@_options(rounds=3, baselines=[name for name in BASELINES if name != "onnxruntime"])
@click.option("--calls", default=100, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--budget", "budget_s", default=6.0, show_default=True, type=click.FloatRange(min=0.1),
    help="Seconds for the calls of one kind; where they take longer there are fewer.",
)  # fmt: skip
def latency(bundle: Path, calls: int, budget_s: float, **options: Any) -> None:
    """Time one text of 8 to 512 tokens at a time, and a few at once."""

    def results(run: _Run) -> dict[str, Any]:
        points = []
        for batch, tokens in (*((1, tokens) for tokens in _LENGTHS), *_BATCHES):
            if tokens <= run.max_length:
                texts = [_text_of(run, tokens, number) for number in range(batch)]
                points.append((f"{batch}x{tokens}", texts))
        points.insert(0, ("query", ["how long does glacier ice keep"]))
        rows = measure_latency(
            run.entrants,
            run.reference,
            points,
            calls=calls,
            budget_s=budget_s,
            settings=run.settings,
        )
        return {
            "points": {
                name: {"texts": len(texts), "tokens": max(run.lengths(texts))}
                for name, texts in points
            },
            "rows": rows,
        }

    _measure("latency", bundle, options, {"calls": calls, "budget_s": budget_s}, results)


@click.command("cold-start")
@_options(rounds=5, baselines=[name for name in BASELINES if name != "onnxruntime"])
def cold_start(bundle: Path, **options: Any) -> None:
    """Time new processes from the import to the first vector, and their memory."""

    def results(run: _Run) -> dict[str, Any]:
        return {"rows": measure_cold_start(run.entrants, settings=run.settings)}

    _measure("cold-start", bundle, options, {}, results)


@click.command()
@_options(rounds=1, baselines=[FASTEST])
@_texts_option
@data_option
@click.option(
    "--size", "sizes", multiple=True, default=(100, 300, 1000, 3000, 10_000, 20_000),
    show_default=True, type=click.IntRange(min=8), help="Texts of a corpus; repeatable.",
)  # fmt: skip
def scaling(
    bundle: Path, named: Sequence[str], folder: Path | None, sizes: Sequence[int], **options: Any
) -> None:
    """Time corpora of growing size, texts repeated behind a number of their own."""

    def results(run: _Run) -> dict[str, Any]:
        texts = _numbered(given, max(sizes))
        lengths = run.lengths(texts)
        # The fastest baseline once, at its own precision; whoever else was named.
        entrants = [e for e in run.entrants if e.in_full or e.spec.side != FASTEST]
        return {
            "texts": [*named],
            "sizes": {str(size): {"tokens": sum(lengths[:size])} for size in sizes},
            "rows": measure_scaling(entrants, texts, sizes, settings=run.settings),
        }

    with one_line_errors():
        given = _texts(named, folder)
        random.Random(0).shuffle(given)  # noqa: S311  # each size is like the whole
    what = {"texts": fingerprint(given), "sizes": list(sizes)}
    _measure("scaling", bundle, options, what, results)


@click.command()
@_options(rounds=1, baselines=[])
@click.option("--count", default=50_000, show_default=True, type=click.IntRange(min=_CHUNK))
def memory(bundle: Path, count: int, **options: Any) -> None:
    """Watch resident memory over many texts of random lengths, 1 to 512 tokens."""

    def results(run: _Run) -> dict[str, Any]:
        long = _text_of(run, run.max_length, 0).split(" ")

        def chunks() -> Iterator[list[str]]:
            chance = random.Random(0)  # noqa: S311  # no secret
            for _ in range(count // _CHUNK):
                yield [" ".join(long[: chance.randint(1, len(long))]) for _ in range(_CHUNK)]

        rows = measure_memory(run.entrants, chunks, settings=run.settings)
        return {"count": count // _CHUNK * _CHUNK, "rows": rows}

    _measure("memory", bundle, options, {"count": count}, results)


def _text_of(run: _Run, tokens: int, number: int) -> str:
    """Make a text of just under so many tokens, another one for each number."""
    words = short_texts(number + 1, words=tokens)[number].split(" ")
    while len(words) > 1 and run.lengths([" ".join(words)])[0] > tokens:
        words.pop()
    return " ".join(words)


COMMANDS: tuple[click.Command, ...] = (throughput, latency, cold_start, scaling, memory)
"""All of them."""
