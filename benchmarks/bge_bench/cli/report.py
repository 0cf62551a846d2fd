"""``bge-bench report``: tables and plots from the JSON of earlier runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bge_bench.cli.console import one_line_errors
from bge_bench.errors import BenchError
from bge_bench.reports.tables import ROWS, markdown, notes

BEGIN, END = "<!-- bge-bench report: begin -->", "<!-- bge-bench report: end -->"
"""Lines of a page between which ``--into`` writes."""


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--plots", "folder", type=click.Path(path_type=Path), help="Draw PNG and SVG into this folder."
)
@click.option(
    "--into",
    "page",
    type=click.Path(path_type=Path),
    help=f"Put the tables into this page, between {BEGIN} and the line that ends it.",
)
@click.option("--check", is_flag=True, help="With --into: only tell whether the page is so.")
def report(files: Sequence[Path], folder: Path | None, page: Path | None, check: bool) -> None:
    """Turn the JSON FILES of runs into Markdown tables, and plots."""
    with one_line_errors():
        documents = [(path, read_document(path)) for path in files]
        text = "\n\n".join(section(path, document) for path, document in documents)
        if folder is not None:
            from bge_bench.reports.plots import plot

            folder.mkdir(parents=True, exist_ok=True)
            for path, document in documents:
                for file in plot(document, folder, path.stem):
                    click.echo(f"wrote {file}", err=True)
        if page is None:
            click.echo(text)
            return
        before = page.read_text("utf-8")
        after = with_tables(before, text, name=page.name)
        if check and before != after:
            raise BenchError(
                f"the tables of {page} are not those of {', '.join(str(file) for file in files)}; "
                "leave --check out to write them"
            )
        page.write_text(after, "utf-8")


def read_document(path: Path) -> dict[str, Any]:
    """Return a document that ``--json`` wrote.

    Raises:
        BenchError: If the file is not such a document.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        kind = document["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"cannot read {path} as a document of bge-bench: {error!r}") from error
    if kind not in ROWS:
        raise BenchError(f"{path} is of the kind {kind!r}; there are tables of {', '.join(ROWS)}")
    return document


def section(path: Path, document: dict[str, Any]) -> str:
    """Return a document in Markdown: title, table and notes."""
    hardware = document["hardware"]
    title = f"**{document['model']}, {document['kind']}**"
    if "texts" in document:
        title += f" on {', '.join(document['texts'])}"
    if document.get("repeated_to"):
        title += f", repeated to {document['repeated_to']:,} texts"
    # A virtual machine may report the same name for all processors of a vendor.
    extensions = hardware.get("vector_extensions", ())
    able = f" with {' '.join(extensions)}" if extensions else ""
    gpus = hardware.get("nvidia", {}).get("gpus", ())
    kind, _, index = document.get("device", "cpu").partition(":")
    on_gpu = gpus and kind != "cpu"
    machine = gpus[int(index or 0)]["name"] if on_gpu else f"{hardware['cpu']}{able}"
    where = (
        f"{machine}, {document['threads']} threads, {document['time'][:10]}; raw: `{path.name}`."
    )
    return "\n\n".join([f"{title} ({where})", markdown(ROWS[document["kind"]](document)),
                        "\n".join(f"- {note}" for note in notes(document))])  # fmt: skip


def with_tables(page: str, tables: str, *, name: str) -> str:
    """Return a page with the tables between its two marks.

    Raises:
        BenchError: If the page lacks a mark.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise BenchError(f"{name} has no lines {BEGIN} and {END} to put the tables between")
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}"
