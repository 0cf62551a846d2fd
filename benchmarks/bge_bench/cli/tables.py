"""``bge-bench throughput``, ``latency``, ``cold-start``, ``scaling`` and ``memory``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bge_bench.cli.console import one_line_errors
from bge_bench.cli.options import data_option
from bge_bench.cli.table_run import TableRun, is_reranker, run_table, table_options, texts_option
from bge_bench.datasets.corpus import short_texts, spread_sample
from bge_bench.datasets.named import named_pairs, named_texts, numbered
from bge_bench.experiments.roofline import needed_flop
from bge_bench.experiments.timing import (
    at_their_best,
    measure_cold_start,
    measure_latency,
    measure_memory,
    measure_scaling,
    measure_throughput,
)
from bge_bench.systems.base import BASELINES, INT8_BASELINES, Item
from bge_bench.systems.lineup import FASTEST, FASTEST_INT8
from bge_bench.workers.journal import fingerprint

_SAMPLE = 100
_QUERIES = 10
_BATCH_SIZES = (2, 8, 32)
GPU_BATCH_SIZES = (32, 128, 512)
"""Batch sizes that a baseline is tried with on a GPU."""
_LENGTHS = (8, 16, 32, 64, 128, 256, 512)
_BATCHES = ((4, 32), (16, 32), (32, 32), (32, 128))
_PASSAGES = (1, 10, 100)
_CHUNK = 1000

_BASELINES = (*(name for name in BASELINES if name != "onnxruntime"), *INT8_BASELINES)
"""Baselines of a table that names none."""


@click.command()
@table_options(rounds=3, baselines=_BASELINES)
@texts_option
@data_option
@click.option(
    "--sample", default=_SAMPLE, show_default=True, type=click.IntRange(min=2),
    help="Texts that the slow baselines are timed on; taken evenly over all, by length. Of a "
    "reranker: passages of each query, on one of which they are timed.",
)  # fmt: skip
@click.option(
    "--batch-size", "batch_sizes", multiple=True, default=_BATCH_SIZES, show_default=True,
    type=click.IntRange(min=1), help="Repeatable; each baseline gets the best of them.",
)  # fmt: skip
@click.option(
    "--own-batch-size", is_flag=True,
    help="Let each baseline have the batch size that it comes with.",
)  # fmt: skip
@click.option(
    "--count", type=click.IntRange(min=2),
    help="So many texts: those named, repeated behind a number of their own. Of a reranker: so "
    f"many pairs; default: those of {_QUERIES} queries.",
)  # fmt: skip
@click.option(
    "--no-parallel-batches", is_flag=True,
    help="On a CPU, also time bge-runtime with one batch at a time (parallel_batches=False).",
)  # fmt: skip
def throughput(
    bundle: Path,
    named: Sequence[str],
    folder: Path | None,
    sample: int,
    batch_sizes: Sequence[int],
    own_batch_size: bool,
    count: int | None,
    no_parallel_batches: bool,
    **options: Any,
) -> None:
    """Time all candidates on a corpus, and compare their vectors or scores with PyTorch's."""

    def results(run: TableRun) -> dict[str, Any]:
        lengths = run.lengths(texts)
        reranks = run.reference.reranks
        config = json.loads((run.bundle.path / "config.json").read_text("utf-8"))
        model = run.bundle.manifest.model
        by_length = [texts[i] for i in sorted(range(len(texts)), key=lengths.__getitem__)]
        chosen = texts[:sample] if reranks else spread_sample(by_length, sample)
        if not reranks:
            random.Random(0).shuffle(chosen)  # noqa: S311  # callers do not sort
        candidates = run.candidates
        if chosen == texts:
            candidates = [replace(each, in_full=False) for each in candidates]
        rows = measure_throughput(
            candidates,
            run.reference,
            texts,
            chosen,
            batch_sizes=batch_sizes,
            settings=run.settings,
        )
        return {
            "texts": [*named],
            "unit": "pairs" if reranks else "texts",
            "repeated_to": None if reranks else count,
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

    batch_sizes = () if own_batch_size else batch_sizes
    with one_line_errors():
        texts: list[Item]
        if is_reranker(bundle):
            queries = max(1, (count or _QUERIES * sample) // sample)
            texts = [*named_pairs(named, folder, queries=queries, passages=sample)]
        else:
            texts = [*named_texts(named, folder, count)]
    what = {"texts": fingerprint(texts), "sample": sample, "batch_sizes": list(batch_sizes)}
    options |= {"no_parallel_batches": no_parallel_batches, "folder": folder}
    run_table("throughput", bundle, options, what, results)


@click.command()
@table_options(rounds=3, baselines=_BASELINES)
@click.option("--calls", default=100, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--budget", "budget_s", default=6.0, show_default=True, type=click.FloatRange(min=0.1),
    help="Seconds for the calls of one kind; where they take longer there are fewer.",
)  # fmt: skip
@texts_option
@data_option
@click.option(
    "--batch-size", "batch_sizes", multiple=True, default=_BATCH_SIZES, show_default=True,
    type=click.IntRange(min=1), help="For a reranker, as for throughput.",
)  # fmt: skip
def latency(
    bundle: Path,
    calls: int,
    budget_s: float,
    named: Sequence[str],
    folder: Path | None,
    batch_sizes: Sequence[int],
    **options: Any,
) -> None:
    """Time one text of 8 to 512 tokens at a time, and a few at once.

    Of a reranker: one query with 1, 10 and 100 passages, out of --texts.
    """
    pairs: list[Item] = []

    def results(run: TableRun) -> dict[str, Any]:
        points: list[tuple[str, list[Item]]]
        specs = None
        if run.reference.reranks:
            points = [(f"1 query x {count}", pairs[:count]) for count in _PASSAGES]
            specs = at_their_best(
                run.candidates, pairs, pairs, batch_sizes=batch_sizes, settings=run.settings
            )
        else:
            points = _texts_of_lengths(run)
        rows = measure_latency(
            run.candidates,
            run.reference,
            points,
            calls=calls,
            budget_s=budget_s,
            settings=run.settings,
            specs=specs,
        )
        return {
            "points": {
                name: {"texts": len(texts), "tokens": max(run.lengths(texts))}
                for name, texts in points
            },
            "unit": "pairs" if run.reference.reranks else "texts",
            "rows": rows,
        }

    what: dict[str, Any] = {"calls": calls, "budget_s": budget_s}
    with one_line_errors():
        if is_reranker(bundle):
            pairs += named_pairs(named, folder, queries=1, passages=max(_PASSAGES))
            what |= {"texts": fingerprint(pairs), "batch_sizes": list(batch_sizes)}
    run_table("latency", bundle, options | {"folder": folder}, what, results)


def _texts_of_lengths(run: TableRun) -> list[tuple[str, list[Item]]]:
    points: list[tuple[str, list[Item]]] = [("query", ["how long does glacier ice keep"])]
    for batch, tokens in (*((1, tokens) for tokens in _LENGTHS), *_BATCHES):
        if tokens <= run.max_length:
            texts: list[Item] = [_text_of(run, tokens, number) for number in range(batch)]
            points.append((f"{batch}x{tokens}", texts))
    return points


@click.command("cold-start")
@table_options(rounds=5, baselines=_BASELINES)
@data_option
def cold_start(bundle: Path, **options: Any) -> None:
    """Time new processes from the import to the first vector, and their memory."""

    def results(run: TableRun) -> dict[str, Any]:
        return {"rows": measure_cold_start(run.candidates, settings=run.settings)}

    run_table("cold-start", bundle, options, {}, results)


@click.command()
@table_options(rounds=1, baselines=[FASTEST, FASTEST_INT8])
@texts_option
@data_option
@click.option(
    "--size", "sizes", multiple=True, default=(100, 300, 1000, 3000, 10_000, 20_000),
    show_default=True, type=click.IntRange(min=8), help="Texts of a corpus; repeatable.",
)  # fmt: skip
def scaling(
    bundle: Path, named: Sequence[str], folder: Path | None, sizes: Sequence[int], **options: Any
) -> None:
    """Time corpora of growing size, texts repeated behind a number of their own."""

    def results(run: TableRun) -> dict[str, Any]:
        texts = run.items(numbered(given, max(sizes)))
        lengths = run.lengths(texts)
        # The fastest baseline only in its default precision; all others that were named.
        candidates = [e for e in run.candidates if e.in_full or e.spec.system != FASTEST]
        return {
            "texts": [*named],
            "sizes": {str(size): {"tokens": sum(lengths[:size])} for size in sizes},
            "rows": measure_scaling(candidates, texts, sizes, settings=run.settings),
        }

    with one_line_errors():
        given = named_texts(named, folder)
        random.Random(0).shuffle(given)  # noqa: S311  # each size is like the whole
    what = {"texts": fingerprint(given), "sizes": list(sizes)}
    run_table("scaling", bundle, options | {"folder": folder}, what, results)


@click.command()
@table_options(rounds=1, baselines=[])
@data_option
@click.option("--count", default=50_000, show_default=True, type=click.IntRange(min=_CHUNK))
def memory(bundle: Path, count: int, **options: Any) -> None:
    """Watch resident memory over many texts of random lengths, 1 to 512 tokens."""

    def results(run: TableRun) -> dict[str, Any]:
        long = _text_of(run, run.max_length, 0).split(" ")

        def chunks() -> Iterator[list[Item]]:
            chance = random.Random(0)  # noqa: S311  # no secret
            for _ in range(count // _CHUNK):
                yield run.items(
                    [" ".join(long[: chance.randint(1, len(long))]) for _ in range(_CHUNK)]
                )

        rows = measure_memory(run.candidates, chunks, settings=run.settings)
        return {"count": count // _CHUNK * _CHUNK, "rows": rows}

    run_table("memory", bundle, options, {"count": count}, results)


def _text_of(run: TableRun, tokens: int, number: int) -> str:
    """Return a text of at most ``tokens`` tokens, a different one for each number."""
    words = short_texts(number + 1, words=tokens)[number].split(" ")
    while len(words) > 1 and run.lengths([" ".join(words)])[0] > tokens:
        words.pop()
    return " ".join(words)


COMMANDS: tuple[click.Command, ...] = (throughput, latency, cold_start, scaling, memory)
"""The commands of this module."""
