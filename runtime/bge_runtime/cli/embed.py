"""``bge-embed``: embed the texts of a file or pipe, or of many files to a folder of shards.

For a file as output, the embed_* modules do the parts: embed_input reads rows, embed_model prepares
the model, embed_output formats results; streams has what other commands do as well. A folder is
left to embed_job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from tqdm import tqdm

from bge_runtime._version import __version__
from bge_runtime.cli.command_line import command_line
from bge_runtime.cli.embed_input import Row, read_jsonl, read_lines
from bge_runtime.cli.embed_job import check_file_input, embed_folder, is_folder
from bge_runtime.cli.embed_model import Embedded, make_encoder, prepare_for_queries, read_examples
from bge_runtime.cli.embed_options import (
    OF_A_FILE,
    OF_A_FOLDER,
    EmbedCommand,
    folder_options,
    refuse_options,
)
from bge_runtime.cli.embed_output import FORMATS, format_rows
from bge_runtime.cli.streams.compute import compute_rows
from bge_runtime.cli.streams.input import (
    BadRows,
    InputError,
    chunk_rows,
    input_errors,
    name_input,
    open_input,
)
from bge_runtime.cli.streams.options import model_options
from bge_runtime.cli.streams.output import is_jsonl, is_npy, open_output
from bge_runtime.models import FlagAutoModel

_CHUNK = 8192
"""Texts that are read, embedded and written at a time, so that memory stays flat."""

_CHARACTERS = 1 << 24
"""Most characters of a chunk, with other fields, so that memory stays flat for long lines too."""

_COLBERT_CHARACTERS = 1 << 18
"""Most characters of a chunk with ColBERT vectors, of which BGE-M3's take 4 KB per token: 0.3 GB
for a chunk of English, and twice as much for Chinese."""


@click.command(cls=EmbedCommand, context_settings={"max_content_width": 100})
@click.argument("model")
@click.argument("sources", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--output",
    "-o",
    default="-",
    help="A .npy or .jsonl file, which appears once it is complete; a pipe or device, which gets "
    "JSONL; or a folder or URI of one, which gets shards. Default: JSONL on standard output.",
)
@click.option("--jsonl", is_flag=True, help="INPUT is JSONL. Default for .jsonl and .ndjson files.")
@click.option("--field", default="text", show_default=True, help="Field of JSONL to embed.")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="What to do with a text that cannot be embedded. stop: exit with 1; standard output has "
    "the lines before it. skip: leave it out, and report it on standard error or, in a folder, in "
    "_rejects; exit with 0 if any line was embedded. Not for a .npy file, whose rows match lines.",
)
@click.option("--query", is_flag=True, help="Texts are queries: put the instruction before each.")
@click.option("--instruction", help="With --query. Default: the one the model's authors recommend.")
@click.option(
    "--examples",
    "examples_file",
    metavar="FILE",
    help="With --query, for models like bge-en-icl: a JSON list of objects with query, response "
    "and instruct.",
)
@click.option("--max-length", type=click.IntRange(1), help="Most tokens of a text. Default: 512.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Most texts of a batch.",
)
@click.option("--truncate-dim", type=click.IntRange(1), help="Components of a vector to keep.")
@click.option("--no-normalize", is_flag=True, help="Do not scale vectors to unit length.")
@click.option(
    "--sparse", is_flag=True, help="Also write lexical weights, for BGE-M3; not to a .npy."
)
@click.option(
    "--colbert", is_flag=True, help="Also write ColBERT vectors, for BGE-M3; not to a .npy."
)
@model_options
@folder_options
@click.version_option(__version__)
@click.pass_context
@command_line("bge-embed")
def main(
    context: click.Context, /, model: str, sources: tuple[str, ...], output: str, **options: Any
) -> None:
    """Embed INPUT with MODEL: one text per line, or the rows of many files.

    MODEL is a folder that bge-export wrote, or the Hub ID of one; or a checkpoint, as a folder or
    Hub ID, which is exported into the cache the first time, if PyTorch is installed.

    With a file or stream as output, INPUT is a file of text lines or of JSONL, or - for standard
    input. An empty line is an empty text. JSONL keeps its other fields in the output.

    With a folder as output, INPUT is files, folders, patterns or URIs of Parquet, Arrow, JSONL,
    CSV, TSV or text. A shard is complete or not there: after an interruption, the same command
    goes on.
    """
    instructs = options["instruction"] is not None or options["examples_file"] is not None
    if instructs and not options["query"]:
        raise InputError("--instruction and --examples are only for queries; pass --query as well")
    if is_folder(output):
        refuse_options(context, OF_A_FILE, output="a folder")
        examples_file, verbose = options.pop("examples_file"), options.pop("verbose")
        for name in OF_A_FILE:
            del options[name]
        embed_folder(
            model, sources, output, examples_file=examples_file, verbose=verbose, options=options
        )
        return
    refuse_options(context, OF_A_FOLDER, output="a file")
    for name in OF_A_FOLDER:
        del options[name]
    if len(sources) > 1:
        raise InputError(
            f"{len(sources)} inputs are for a folder as output; name one with --output, such as "
            "--output vectors"
        )
    source = sources[0] if sources else "-"
    check_file_input(source)
    _embed_file(model, source, output, **options)


def _embed_file(
    model: str,
    source: str,
    output: str,
    *,
    jsonl: bool,
    field: str,
    on_error: str,
    query: bool,
    instruction: str | None,
    examples_file: str | None,
    max_length: int | None,
    batch_size: int,
    truncate_dim: int | None,
    no_normalize: bool,
    sparse: bool,
    colbert: bool,
    revision: str | None,
    devices: tuple[str, ...],
    engine: str,
    precision: str | None,
    threads: int | None,
    verbose: bool,
) -> None:
    _check_npy(output, heads=sparse or colbert, skips=on_error == "skip")
    examples = None if examples_file is None else read_examples(examples_file)
    # Files come first, since opening a model may take minutes.
    with open_input(source) as file, open_output(output, [file], FORMATS) as write:
        with input_errors():
            opened = FlagAutoModel.from_finetuned(
                model,
                normalize_embeddings=not no_normalize,
                truncate_dim=truncate_dim,
                devices=list(devices) or None,
                batch_size=batch_size,
                engine=engine,
                precision=precision,
                threads=threads,
                revision=revision,
            )
            if verbose:
                click.echo(f"{model}: {opened.engine.info}", err=True)
            encode = make_encoder(
                opened, query=query, sparse=sparse, colbert=colbert, max_length=max_length
            )
            if query:
                prepare_for_queries(opened, instruction, examples, examples_file)
            write(*format_rows([], encode([])))  # empty input is valid, and makes an empty file
        bad_rows = BadRows(
            name_input(source), command="bge-embed", done="embedded", skip=on_error == "skip"
        )
        if jsonl or is_jsonl(source):
            results = ["embedding", *["lexical_weights"] * sparse, *["colbert_vecs"] * colbert]
            rows = read_jsonl(file, field, results, bad_rows)
        else:
            rows = read_lines(file, bad_rows)

        def embed_rows(rows: Sequence[Row]) -> Embedded:
            return encode([row.text for row in rows])

        characters = _COLBERT_CHARACTERS if colbert else _CHARACTERS
        count = 0
        with tqdm(desc="embedding", unit="text", disable=None) as bar:
            for chunk in chunk_rows(rows, _CHUNK, characters=characters):
                for part, embedded in compute_rows(chunk, embed_rows, bad_rows):
                    write(*format_rows(part, embedded))
                    count += len(part)
                    bar.update(len(part))
        bad_rows.summarize(count)


def _check_npy(output: str, *, heads: bool, skips: bool) -> None:
    """Check that an output can hold what is asked for.

    Raises:
        InputError: If it cannot.
    """
    if is_npy(output) and heads:
        raise InputError("--sparse and --colbert need JSONL; name a .jsonl --output")
    if is_npy(output) and skips:
        raise InputError(
            "--on-error skip leaves lines out, and the rows of a .npy would no longer match them; "
            "name a .jsonl --output"
        )


if __name__ == "__main__":
    main()
