"""``bge-rerank``: score the passages of queries, from a file or pipe to another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click
from tqdm import tqdm

from bge_runtime._version import __version__
from bge_runtime.cli.command_line import command_line
from bge_runtime.cli.rerank.rows import QueryRow, jsonl_formats, read_queries
from bge_runtime.cli.streams.compute import compute_rows
from bge_runtime.cli.streams.input import (
    BadRows,
    chunk_rows,
    input_errors,
    name_input,
    open_input,
)
from bge_runtime.cli.streams.options import model_options
from bge_runtime.cli.streams.output import open_output
from bge_runtime.rerankers import FlagAutoReranker

_CHUNK = 8192
"""Pairs that are read, scored and written at a time, so that memory stays flat."""

_CHARACTERS = 1 << 24
"""Most characters of a chunk, so that memory stays flat for long texts too."""


@click.command(context_settings={"max_content_width": 100})
@click.argument("model")
@click.argument("sources", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--output",
    "-o",
    default="-",
    help="A .jsonl file, which appears once it is complete; or a pipe or device. Default: standard "
    "output.",
)
@click.option(
    "--top-k",
    type=click.IntRange(1),
    help="Write a ranking of so many passages, best first, with their indices from 0. Default: the "
    "scores of all passages, in their order.",
)
@click.option("--normalize", is_flag=True, help="Write scores from 0 to 1: the sigmoid of each.")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="What to do with a line that cannot be scored. stop: exit with 1; standard output has the "
    "lines before it. skip: leave it out, and report it on standard error; exit with 0 if any line "
    "was scored.",
)
@click.option("--query-instruction", help="Put before each query. Default: what the model needs.")
@click.option(
    "--passage-instruction", help="Put before each passage. Default: what the model needs."
)
@click.option("--max-length", type=click.IntRange(1), help="Most tokens of a pair. Default: 512.")
@click.option(
    "--query-max-length",
    type=click.IntRange(1),
    help="Most tokens of a query. Default: three quarters of --max-length.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Most pairs of a batch.",
)
@model_options
@click.version_option(__version__)
@command_line("bge-rerank")
def main(model: str, sources: tuple[str, ...], output: str, **options: Any) -> None:
    """Score with MODEL how well passages answer a query. Higher is better.

    MODEL is a reranker: a folder that bge-export wrote, or the Hub ID of one; or a checkpoint, as a
    folder or Hub ID, which is exported into the cache the first time, if PyTorch is installed.

    INPUT is files of JSONL, or - for standard input, the default. A line has a query and passages,
    and so has the output a line with their scores, in their order, and with all other fields:

    \b
      {"id": 7, "query": "...", "passages": ["...", "..."]}
      {"id": 7, "scores": [4.1, -9.2]}

    A line with a "passage", one string, is one pair. It gets a "score".
    """  # noqa: D301 - click reads the backspace character
    _score_files(model, sources or ("-",), output, **options)


def _score_files(
    model: str,
    sources: Sequence[str],
    output: str,
    *,
    top_k: int | None,
    on_error: str,
    devices: tuple[str, ...],
    verbose: bool,
    precision: str | None,
    query_instruction: str | None,
    passage_instruction: str | None,
    **options: Any,
) -> None:
    options |= {
        "devices": list(devices) or None,
        "precision": precision or "auto",
        "query_instruction_for_rerank": query_instruction,
        "passage_instruction_for_rerank": passage_instruction,
    }
    given = {name: value for name, value in options.items() if value is not None}
    with ExitStack() as stack:
        # Files come first, since opening a model may take minutes.
        files = [stack.enter_context(open_input(source)) for source in sources]
        write = stack.enter_context(open_output(output, files, jsonl_formats(top_k)))
        with input_errors():
            opened = FlagAutoReranker.from_finetuned(model, **given)
            opened.pair_plan("").tokenize([""])  # fails if a length leaves no room for texts
        if verbose:
            click.echo(f"{model}: {opened.engine.info}", err=True)

        def score_rows(rows: Sequence[QueryRow]) -> list[float]:
            pairs = [pair for row in rows for pair in row.pairs]
            return opened.compute_score(pairs, show_progress_bar=False) if pairs else []

        bad_rows = BadRows("", command="bge-rerank", done="scored", skip=on_error == "skip")
        count = 0
        bar = stack.enter_context(tqdm(desc="scoring", unit="pair", disable=None))
        for source, file in zip(sources, files, strict=True):
            bad_rows.source = name_input(source)
            rows = read_queries(file, bad_rows, ranked=top_k is not None)
            for chunk in chunk_rows(rows, _CHUNK, characters=_CHARACTERS):
                for part, scores in compute_rows(chunk, score_rows, bad_rows):
                    write(part, scores)
                    count += len(part)
                    bar.update(len(scores))
        bad_rows.source = ", ".join(map(name_input, sources))
        bad_rows.summarize(count)


if __name__ == "__main__":
    main()
