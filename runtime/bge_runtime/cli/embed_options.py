"""The options of ``bge-embed``: which are for a file as output, which for a folder, which for both.

`EmbedCommand` shows them in these sections, and `refuse_options` refuses what is of the other kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from bge_runtime.cli.streams.input import InputError

OF_A_FILE = ("jsonl", "field")
"""Options for one file or stream as output."""

OF_A_FOLDER = (
    "text", "template", "id_column", "keep", "input_format", "output_format", "no_dense", "dtype",
    "colbert_dtype", "chunk_tokens", "overlap", "rows_per_shard", "on_empty", "shard",
)  # fmt: skip
"""Options for a folder as output."""

_SECTIONS = {"Options of a file as output": OF_A_FILE, "Options of a folder as output": OF_A_FOLDER}

_FLOATS = click.Choice(("float32", "float16"))

_FOLDER_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--text", multiple=True, help="Column to embed; repeatable. Default: text."),
    click.option(
        "--template",
        help='How several columns make a text, as "{title}: {body}". Default: a line for each.',
    ),
    click.option(
        "--id", "id_column", help="Column that identifies a row. Default: its number, from 0."
    ),
    click.option("--keep", multiple=True, help="Column to keep in the output; repeatable."),
    click.option(
        "--input-format",
        type=click.Choice(("parquet", "arrow", "jsonl", "csv", "tsv", "text")),
        help="Default: by the suffix of the files.",
    ),
    click.option(
        "--format",
        "output_format",
        type=click.Choice(("parquet", "npy", "jsonl", "lance")),
        default="parquet",
        show_default=True,
        help="Format of the shards.",
    ),
    click.option("--no-dense", is_flag=True, help="With --sparse or --colbert: only these."),
    click.option(
        "--dtype", type=_FLOATS, default="float32", show_default=True, help="Of dense vectors."
    ),
    click.option(
        "--colbert-dtype",
        type=_FLOATS,
        default="float16",
        show_default=True,
        help="Of ColBERT vectors.",
    ),
    click.option(
        "--chunk-tokens",
        type=click.IntRange(1),
        help="Split texts into chunks of so many tokens, with a row for each. Default: a long text "
        "is cut at --max-length.",
    ),
    click.option(
        "--overlap",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Tokens that consecutive chunks share.",
    ),
    click.option(
        "--rows-per-shard",
        type=click.IntRange(1),
        help="Rows of the input in a shard. Default: 16384; 2048 with --colbert.",
    ),
    click.option(
        "--on-empty",
        type=click.Choice(("skip", "embed", "stop")),
        default="skip",
        show_default=True,
        help="What to do with a row whose text is null or white space. skip: leave it out, and "
        "list it in _rejects.",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Do each N-th shard, from the I-th on: one of N processes that share a job.",
    ),
)

_INSTEAD = {
    "text": "With a file as output, the column is named by --field",
    "keep": "JSONL as output keeps all other fields",
    "jsonl": "Use --input-format jsonl",
    "field": "Use --text",
}


def folder_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for a folder as output."""
    for option in reversed(_FOLDER_OPTIONS):
        command = option(command)
    return command


def refuse_options(context: click.Context, names: tuple[str, ...], *, output: str) -> None:
    """Refuse options that are for another kind of output.

    Args:
        context: The running command.
        names: The options, by their parameters.
        output: What the output is: ``"a file"`` or ``"a folder"``.

    Raises:
        InputError: If one of them was given.
    """
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    other = {"a file": "a folder", "a folder": "a file"}[output]
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        advice = _INSTEAD.get(name, "Name a folder with --output, such as --output vectors")
        raise InputError(
            f"{options[name]} is for {other} as output, and this is {output}. {advice}"
        )


class EmbedCommand(click.Command):
    """A command whose help has a section for each kind of output."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        sections: Mapping[str, tuple[str, ...]] = _SECTIONS
        special = {name for names in sections.values() for name in names}
        shown = [
            (each.name, each.get_help_record(ctx))
            for each in self.get_params(ctx)
            if isinstance(each, click.Option)
        ]
        for title, names in {"Options": None, **sections}.items():
            rows = [
                record
                for name, record in shown
                if record is not None and (name not in special if names is None else name in names)
            ]
            with formatter.section(title):
                formatter.write_dl(rows)
