"""``bge-bench``: measure how close a bundle is to its references, and how much faster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click

try:
    from bge_bench.cli.bulk import bulk
    from bge_bench.cli.checkpoint import checkpoint as checkpoint_command
    from bge_bench.cli.console import one_line_errors, report
    from bge_bench.cli.data import data
    from bge_bench.cli.gpu import gpu
    from bge_bench.cli.options import (
        checkpoint_option,
        data_option,
        device_option,
        json_option,
        threads_option,
        timeout_option,
    )
    from bge_bench.cli.progress import progress
    from bge_bench.cli.report import report as report_command
    from bge_bench.cli.retrieval import retrieval
    from bge_bench.cli.serve import serve
    from bge_bench.cli.table_run import is_reranker
    from bge_bench.cli.tables import COMMANDS
    from bge_bench.datasets.corpus import (
        PARAGRAPHS,
        paragraphs,
        read_texts,
        spread_sample,
        texts_of_every_length,
    )
    from bge_bench.datasets.named import calibration_texts
    from bge_bench.environment import busy_percent
    from bge_bench.experiments.m3 import (
        measure_heads,
        measure_matching,
        measure_postprocessing,
        passages,
    )
    from bge_bench.experiments.parity import VECTOR_REFERENCES, measure_parity
    from bge_bench.experiments.prefix import EXAMPLES, measure_prefix, read_examples
    from bge_bench.experiments.speed import Workload, line_up, measure_speed, step_count
    from bge_bench.reports.text import pair_table, parity_table, speed_table
    from bge_bench.systems.base import ALL_BASELINES, Item, as_passages
    from bge_bench.systems.int8_models import int8_model
    from bge_bench.systems.lineup import variants_here
    from bge_bench.systems.source import open_checkpoint
    from bge_bench.workers.journal import Journal, fingerprint, header_of
except ImportError as missing:
    sys.exit(f"bge-bench: {missing}. Run `pip install 'bge-runtime[bench]'`")
from bge_runtime.bundle import TOLERANCES, Bundle
from bge_runtime.system import usable_cpus

_MIXED_PARAGRAPHS = 16
"""Paragraphs that ``parity`` adds to the short texts of an export."""

_texts_option = click.option(
    "--texts",
    "texts_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one text a line. Default: texts of our own.",
)


@click.group(context_settings={"max_content_width": 100})
def main() -> None:
    """Measure a bundle against the libraries it stands for, and against its peers."""


main.add_command(data)
main.add_command(report_command)
for command in COMMANDS:
    main.add_command(command)
main.add_command(retrieval)
main.add_command(gpu)
main.add_command(checkpoint_command)
main.add_command(serve)
main.add_command(bulk)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@checkpoint_option
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Of all, references in fp32; cuda:0 for a GPU, where short texts run one by one as well.",
)
@click.option(
    "--against",
    multiple=True,
    type=click.Choice(VECTOR_REFERENCES),
    help="Repeatable. Default: all.",
)
@_texts_option
@click.option("--every-length", is_flag=True, help="Add texts of 0 to 510 words.")
@json_option
def parity(
    bundle: Path,
    checkpoint: Path | None,
    device: str,
    against: Sequence[str],
    texts_file: Path | None,
    every_length: bool,
    json_file: Path | None,
) -> None:
    """Compare the vectors of every variant of BUNDLE that runs here with its references'.

    Of a reranker the scores of pairs; the texts of a file are passages of one query. Exits with 1
    where a tolerance is missed.
    """
    with one_line_errors():
        opened = Bundle.open(bundle)
        reranks = is_reranker(bundle)
        texts = _parity_items(texts_file, reranks=reranks, every_length=every_length)
        references = list(dict.fromkeys(against)) or list(VECTOR_REFERENCES)
        # The model's class; an embedder's once more with CUDA graphs.
        more = 1 if device == "cpu" or reranks else 2
        steps = len(references) + more + len(variants_here(opened, device))
        with open_checkpoint(opened, checkpoint) as folder, progress(steps) as step:
            rows = measure_parity(opened, folder, references, texts, device=device, step=step)
        passed = not any(row.failures for row in rows)
        document = {
            "texts": {"source": str(texts_file or "built in"), "count": len(texts)},
            "device": device,
            "rows": [row.to_json() for row in rows],
            "passed": passed,
        }
        report(json_file, opened, document, parity_table(rows))
    sys.exit(0 if passed else 1)


def _parity_items(texts_file: Path | None, *, reranks: bool, every_length: bool) -> Sequence[Item]:
    """Return the texts that are compared, or for a reranker the pairs."""
    if texts_file is not None:
        texts = read_texts(texts_file)
        given = as_passages(texts) if reranks else texts
    elif reranks:
        from bge_export.parity_pairs import PARITY_PAIRS

        given = [*PARITY_PAIRS, *as_passages(paragraphs(_MIXED_PARAGRAPHS))]
    else:
        from bge_export.parity_texts import PARITY_TEXTS

        given = [*PARITY_TEXTS, *paragraphs(_MIXED_PARAGRAPHS)]
    more = texts_of_every_length() if every_length else []
    return [*given, *(as_passages(more) if reranks else more)]


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@checkpoint_option
@device_option
@_texts_option
@data_option
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--sample", type=click.IntRange(min=2), help="Measure on that many texts only.")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=["flagembedding"],
    show_default=True,
    type=click.Choice(ALL_BASELINES),
    help="Repeatable; all take turns in one run.",
)
@click.option(
    "--baseline-batch-size",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of every baseline. Their own defaults (FlagEmbedding and fastembed 256, "
    "sentence-transformers 32) compute more padding.",
)
@threads_option
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", *TOLERANCES)),
    help="Of the bundle and of OpenVINO's baseline; auto is their default. The "
    "other baselines compute in fp32.",
)
@click.option(
    "--outputs",
    default="dense",
    show_default=True,
    type=click.Choice(("dense", "all")),
    help="Of BGE-M3: dense vectors, or lexical weights and ColBERT vectors as well.",
)
@timeout_option
@json_option
def speed(
    bundle: Path,
    checkpoint: Path | None,
    device: str,
    texts_file: Path | None,
    folder: Path | None,
    rounds: int,
    sample: int | None,
    baselines: Sequence[str],
    baseline_batch_size: int,
    threads: int | None,
    precision: str,
    outputs: str,
    timeout_s: float,
    json_file: Path | None,
) -> None:
    """Time BUNDLE against baselines, turn by turn.

    A reranker scores the texts as passages of one query. Exits with 1 if its vectors or scores are
    not PyTorch's, and reports no speed then.
    """
    with one_line_errors():
        opened = Bundle.open(bundle)
        if texts_file is None:
            texts = paragraphs(sample or PARAGRAPHS)
        else:
            texts = read_texts(texts_file)
            texts = spread_sample(texts, sample or len(texts))
        items = as_passages(texts) if is_reranker(bundle) else texts
        workload = Workload(texts=items, rounds=rounds, timeout_s=timeout_s)
        with open_checkpoint(opened, checkpoint) as source:
            lineup = line_up(
                opened,
                source,
                baselines=list(dict.fromkeys(baselines)),
                baseline_batch_size=baseline_batch_size,
                threads=threads or usable_cpus(),
                precision=precision,
                all_outputs=outputs == "all",
                device=device,
                int8_model=partial(
                    int8_model, opened, source, calibration_texts(folder), lambda _: None
                ),
            )
            # Random weights lie in another folder each time.
            systems = [replace(spec, model="") for spec in (lineup.ours, *lineup.baselines)]
            header = header_of(
                "speed",
                opened,
                texts=fingerprint(items),
                systems=[asdict(system) for system in systems],
                rounds=rounds,
            )
            journal = Journal.beside(json_file, header)
            busy = journal.get("busy", busy_percent)
            with progress(step_count(lineup, rounds)) as step:
                result = measure_speed(lineup, workload, step=step, journal=journal)
        document = {
            "texts": {
                "source": str(texts_file or "built in"),
                "count": len(texts),
                "words": sum(len(text.split()) for text in texts),
            },
            "outputs": outputs,
            "device": device,
            "rounds": rounds,
            "query_calls": workload.query_calls,
            "busy_percent_before": busy,
            **result.to_json(),
        }
        report(
            json_file, opened, document, speed_table(result, texts=len(texts), busy_percent=busy)
        )
        journal.close()
    sys.exit(1 if result.ours.failures else 0)


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--headless",
    type=click.Path(path_type=Path),
    help="Bundle of the same checkpoint, made with --model-class encoder-only-base. Without it "
    "the heads are not timed.",
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--passages",
    "count",
    default=1000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of 512 tokens, to post-process and to match with as many.",
)
@click.option(
    "--precision", default="auto", show_default=True, type=click.Choice(("auto", *TOLERANCES))
)
@json_option
def m3(
    bundle: Path,
    headless: Path | None,
    rounds: int,
    count: int,
    precision: str,
    json_file: Path | None,
) -> None:
    """Time what BGE-M3 does beside its encoder: heads, post-processing, matching."""
    with one_line_errors():
        opened = Bundle.open(bundle)
        busy = busy_percent()
        steps = rounds + 2 + (3 + rounds) * (headless is not None)
        with progress(steps) as step:
            batches = passages(count)
            pairs = measure_postprocessing(bundle, batches, rounds=rounds, step=step)
            pairs.append(measure_matching(passages(count + 1)[: len(batches)], batches, step=step))
            if headless is not None:
                pairs += measure_heads(
                    bundle,
                    headless,
                    precision=precision,
                    rounds=rounds,
                    step=step,
                )
        document = {
            "busy_percent_before": busy,
            "pairs": [pair.to_json() for pair in pairs],
        }
        report(json_file, opened, document, pair_table(pairs, busy_percent=busy))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@checkpoint_option
@device_option
@click.option("--queries", "count", default=256, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--examples",
    "examples_file",
    type=click.Path(path_type=Path),
    help="JSON list of examples for bge-en-icl. Default: two built in.",
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--precision", default="auto", show_default=True, type=click.Choice(("auto", *TOLERANCES))
)
@json_option
def prefix(
    bundle: Path,
    checkpoint: Path | None,
    device: str,
    count: int,
    examples_file: Path | None,
    rounds: int,
    precision: str,
    json_file: Path | None,
) -> None:
    """Time queries behind instruction and examples, with that prefix computed once or not."""
    with one_line_errors():
        opened = Bundle.open(bundle)
        busy = busy_percent()
        examples = EXAMPLES if examples_file is None else read_examples(examples_file)
        with open_checkpoint(opened, checkpoint) as folder, progress(3 * rounds) as step:
            pairs, facts = measure_prefix(
                opened,
                folder,
                count=count,
                examples=examples,
                precision=precision,
                rounds=rounds,
                step=step,
                device=device,
            )
        document = {
            "examples": str(examples_file or "built in"),
            "busy_percent_before": busy,
            **facts,
            "pairs": [pair.to_json() for pair in pairs],
        }
        table = f"{pair_table(pairs, busy_percent=busy)}\n{facts['in_force']}"
        report(json_file, opened, document, table)


if __name__ == "__main__":
    main()
