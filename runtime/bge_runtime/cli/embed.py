"""``bge-embed``: texts in, vectors out, from a shell."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime._version import __version__
from bge_runtime.cli.command_line import command_line
from bge_runtime.cli.embed_input import (
    BadRows,
    InputError,
    Row,
    chunk_rows,
    open_input,
    read_jsonl,
    read_lines,
)
from bge_runtime.cli.embed_output import is_jsonl, is_npy, open_output
from bge_runtime.errors import NotFiniteError
from bge_runtime.m3 import M3Output
from bge_runtime.models import AnyFlagModel, BGEM3FlagModel, FlagAutoModel, FlagICLModel
from bge_runtime.sources import DECODER_ONLY_ICL
from bge_runtime.system import read_json

_CHUNK = 8192
"""Texts read, embedded and written at a time, so that memory stays flat."""

_CHARACTERS = 1 << 24
"""Characters of these texts and their fields, so that it stays flat where lines are long, too."""

_COLBERT_CHARACTERS = 1 << 18
"""Characters of texts whose ColBERT vectors are in memory at a time: with BGE-M3's 4 KB a token,
0.3 GB of English and twice as much of Chinese."""

Embedded = NDArray[np.float32] | M3Output


@click.command(context_settings={"max_content_width": 100})
@click.argument("model")
@click.argument("source", metavar="[INPUT]", default="-")
@click.option(
    "--output",
    "-o",
    default="-",
    help="A .npy or .jsonl file, which is there once it is whole; or a pipe or device, for JSONL. "
    "Default: JSONL on standard output.",
)
@click.option(
    "--jsonl", is_flag=True, help="INPUT is JSONL (known by itself from a .jsonl or .ndjson name)."
)
@click.option("--field", default="text", show_default=True, help="Field of JSONL that is embedded.")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip")),
    default="stop",
    show_default=True,
    help="At a line that cannot be embedded: stop, with what came before it on standard output; or "
    "skip it, say so on standard error, and exit with 0 if any other line is left. Not for .npy, "
    "whose rows match lines.",
)
@click.option("--query", is_flag=True, help="Texts are queries: put the instruction before each.")
@click.option("--instruction", help="With --query. Default: the one the model's authors recommend.")
@click.option(
    "--examples",
    "examples_file",
    metavar="FILE",
    help="With --query, of bge-en-icl and its like: a JSON list of objects with query, response "
    "and instruct.",
)
@click.option("--max-length", type=click.IntRange(1), help="Tokens of a text. Default: 512.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Texts.")
@click.option("--truncate-dim", type=click.IntRange(1), help="Components to keep.")
@click.option("--no-normalize", is_flag=True, help="Leave vectors at their own length.")
@click.option("--sparse", is_flag=True, help="Of BGE-M3: lexical weights as well, in JSONL.")
@click.option("--colbert", is_flag=True, help="Of BGE-M3: ColBERT vectors as well, in JSONL.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--device", "devices", multiple=True, help="Repeatable. Default: cpu.")
@click.option("--engine", default="auto", show_default=True, help="Name of an engine.")
@click.option("--precision", help="Name of a precision. Default: the fastest one that is proven.")
@click.option("--threads", type=click.IntRange(1), help="Default: all that may be used.")
@click.option("--verbose", "-v", is_flag=True, help="Say which engine is in force.")
@click.version_option(__version__)
@command_line("bge-embed")
def main(
    model: str,
    source: str,
    output: str,
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
    """Embed INPUT, one text a line, with MODEL.

    MODEL is a folder that bge-export wrote, or the hub id of one; or a checkpoint, in a folder or
    on the hub, which is exported into the cache the first time, where PyTorch is installed.

    INPUT is a file of text lines or of JSONL, or - for standard input. An empty line is
    an empty text. JSONL comes out with the fields it came in with, less the text.
    """
    if not query and (instruction is not None or examples_file is not None):
        raise InputError(
            "--instruction and --examples are put before queries; pass --query as well"
        )
    _check_format(output, heads=sparse or colbert, skips=on_error == "skip")
    examples = None if examples_file is None else _read_examples(examples_file)
    # All files come first: a model may take minutes to open.
    with open_input(source) as file, open_output(output, file) as write:
        try:
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
            if (sparse or colbert) and not isinstance(opened, BGEM3FlagModel):
                name = opened.bundle.manifest.model.name
                raise InputError(f"--sparse and --colbert are for BGE-M3, and this is {name}")
            if query:
                _prepare_for_queries(opened, instruction, examples, examples_file)
            kinds = {"return_sparse": True} if sparse else {}
            kinds |= {"return_colbert_vecs": True} if colbert else {}
            call: Callable[..., Embedded] = opened.encode_queries if query else opened.encode_corpus
            encode = partial(call, max_length=max_length, show_progress_bar=False, **kinds)
            write(*_results([], encode([])))  # no input is no error, and a file of no rows
        except ValueError as error:
            raise InputError(str(error)) from error
        bad_rows = BadRows("standard input" if source == "-" else source, skip=on_error == "skip")
        if jsonl or is_jsonl(source):
            results = ["embedding", *["lexical_weights"] * sparse, *["colbert_vecs"] * colbert]
            rows = read_jsonl(file, field, results, bad_rows)
        else:
            rows = read_lines(file, bad_rows)
        chunks = chunk_rows(
            rows, _CHUNK, characters=_COLBERT_CHARACTERS if colbert else _CHARACTERS
        )
        count = 0
        with tqdm(desc="embedding", unit="text", disable=None) as bar:
            for part, embedded in _embed_chunks(chunks, encode, bad_rows):
                write(*_results(part, embedded))
                count += len(part)
                bar.update(len(part))
        bad_rows.summarize(embedded=count)


def _check_format(output: str, *, heads: bool, skips: bool) -> None:
    """Refuse an array for what only JSONL can hold.

    Raises:
        InputError: If the output is one.
    """
    if not is_npy(output):
        return
    if heads:
        raise InputError("--sparse and --colbert go into JSONL; name a .jsonl --output")
    if skips:
        raise InputError(
            "--on-error skip leaves lines out, and the rows of a .npy would no longer match them; "
            "name a .jsonl --output"
        )


def _embed_chunks(
    chunks: Iterable[Sequence[Row]], encode: Callable[[list[str]], Embedded], bad_rows: BadRows
) -> Iterator[tuple[Sequence[Row], Embedded]]:
    for chunk in chunks:
        yield from _embed(chunk, encode, bad_rows)


def _embed(
    rows: Sequence[Row], encode: Callable[[list[str]], Embedded], bad_rows: BadRows
) -> Iterator[tuple[Sequence[Row], Embedded]]:
    """Embed rows. Where the model refuses, find the row that it is about by halves."""
    try:
        embedded = encode([row.text for row in rows])
    except (ValueError, NotFiniteError) as error:
        if len(rows) == 1:
            bad_rows.add(rows[0].line, f"cannot be embedded: {error}")
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            yield from _embed(half, encode, bad_rows)
        return
    yield rows, embedded


def _results(rows: Sequence[Row], embedded: Embedded) -> tuple[Iterator[str], NDArray[np.float32]]:
    """Return what is written of rows: the members of their objects, and dense vectors."""
    if not isinstance(embedded, dict):
        return (row.members for row in rows), embedded
    dense = embedded["dense_vecs"]
    assert dense is not None
    return _members_with_heads(rows, embedded), dense


def _members_with_heads(rows: Sequence[Row], embedded: M3Output) -> Iterator[str]:
    for index, row in enumerate(rows):
        heads: dict[str, Any] = {}
        if (weights := embedded["lexical_weights"]) is not None:
            heads["lexical_weights"] = {key: float(x) for key, x in weights[index].items()}
        if (vectors := embedded["colbert_vecs"]) is not None:
            # Lists of its numbers take eight times their memory: one text's at a time.
            heads["colbert_vecs"] = vectors[index].tolist()
        members = json.dumps(heads, allow_nan=False)[1:-1]
        yield ", ".join(filter(None, (row.members, members)))


def _prepare_for_queries(
    model: AnyFlagModel,
    instruction: str | None,
    examples: list[Any] | None,
    examples_file: str | None,
) -> None:
    """Set what is put before each query."""
    card = model.bundle.manifest.model
    if instruction is None:
        # M3 is trained without one.
        instruction = "" if isinstance(model, BGEM3FlagModel) else card.query_instruction
    if instruction is None:
        raise InputError(
            f"nothing says what instruction {card.name} wants before a query; pass "
            "--instruction TEXT, or --instruction '' for none"
        )
    # Without one, none of the words around it either.
    model.query_instruction_for_retrieval = instruction or None
    if examples is None:
        return
    if not isinstance(model, FlagICLModel):
        raise InputError(
            f"--examples are for models of class {DECODER_ONLY_ICL}, and {card.name} is of class "
            f"{card.model_class}"
        )
    try:
        model.set_examples(examples)
    except (TypeError, ValueError) as error:
        raise InputError(f"{examples_file}: {error}") from error


def _read_examples(file: str) -> list[Any]:
    try:
        examples: list[Any] = read_json(
            Path(file),
            error=InputError,
            kind=list,
            remedy="--examples takes a JSON list of objects with query, response and instruct",
            encoding="utf-8-sig",
        )
    except FileNotFoundError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    return examples


if __name__ == "__main__":
    main()
