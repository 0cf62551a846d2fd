"""``bge-export``: turn a checkpoint into a bundle."""

from __future__ import annotations

import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
from tqdm import tqdm

from bge_export.bundle import check_output, check_target, push
from bge_export.checkpoint import check_tokenizer_files, find_checkpoint, inspect_checkpoint

try:
    from bge_export.targets import select_decoder_targets, select_targets, target_table
except ImportError as missing:
    sys.exit(f"bge-export: {missing}. Run `pip install 'bge-runtime[export]'`")
from bge_runtime.bundle import Bundle, Parity
from bge_runtime.cli.command_line import command_line
from bge_runtime.engines import TensorRtEngine
from bge_runtime.errors import ExportError
from bge_runtime.sources import (
    DECODER_CLASSES,
    MODEL_CLASSES,
    POOLING_METHODS,
    WARNING_START,
    find_model,
)
from bge_runtime.system import check_utf8, expand_user, format_table, local_path

if TYPE_CHECKING:
    from bge_export.checkpoint import Checkpoint
    from bge_export.encoder import VariantReport

_STEPS = 8
"""Steps of an export, but for one a variant."""


@click.command(
    epilog="What exists:\n\n\b\n" + target_table(),
    context_settings={"max_content_width": 100},
)
@click.argument("model")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the bundle. Default: the model's name, here.",
)
@click.option(
    "--model-class",
    type=click.Choice(MODEL_CLASSES),
    help="FlagEmbedding's class. Default: what the checkpoint's files tell, else its name.",
)
@click.option(
    "--pooling",
    type=click.Choice(POOLING_METHODS),
    help="Default: the model's own; where it has none, that of a --model-class.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Repeatable. Default: all; cpu for decoders. With --precision, cpu and openvino stand "
    "for every graph that runs there.",
)
@click.option("--precision", "precisions", multiple=True, help="Repeatable. Default: all.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Use only what the hub's cache holds.")
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@click.option("--trust-remote-code", is_flag=True, help="Run model code from the checkpoint.")
@click.option(
    "--random-weights",
    is_flag=True,
    help="The named architecture with seeded random weights: for benchmarks and tests.",
)
@click.option(
    "--layers", type=click.IntRange(min=1), help="With --random-weights: fewer layers than it has."
)
@click.option("--seed", default=0, show_default=True, help="Seed of random weights.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --random-weights: folder to take the tokenizer from. Default: one is made.",
)
@click.option(
    "--build-engine",
    is_flag=True,
    help="With --target tensorrt, on the machine with the GPU: build its engines now, into the "
    "cache. Otherwise that is done at the first use.",
)
@click.option("--push-to-hub", "repo", metavar="OWNER/NAME", help="Upload the bundle as well.")
@click.option("--private", is_flag=True, help="With --push-to-hub: make a private repository.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@command_line("bge-export")
def main(
    model: str,
    output: Path | None,
    model_class: str | None,
    pooling: str | None,
    targets: Sequence[str],
    precisions: Sequence[str],
    revision: str | None,
    offline: bool,
    force: bool,
    trust_remote_code: bool,
    random_weights: bool,
    layers: int | None,
    seed: int,
    tokenizer: Path | None,
    build_engine: bool,
    repo: str | None,
    private: bool,
    as_json: bool,
) -> None:
    """Export MODEL to a bundle that runs without PyTorch.

    MODEL is a hub id such as BAAI/bge-large-en-v1.5, a checkpoint folder, or with
    --random-weights the name of a model.
    """
    for wrong, message in (
        (
            (layers is not None or tokenizer is not None) and not random_weights,
            "--layers and --tokenizer are for --random-weights; a checkpoint has its own",
        ),
        (
            random_weights and (revision is not None or offline or trust_remote_code),
            "--revision, --offline and --trust-remote-code are for checkpoints",
        ),
        (private and repo is None, "--private is for --push-to-hub"),
        (
            build_engine and "tensorrt" not in targets,
            "--build-engine is for --target tensorrt",
        ),
    ):
        if wrong:
            raise click.UsageError(message)
    _check_targets(model, model_class, targets, precisions)
    output = expand_user(
        output or _default_output(model, random_weights=random_weights), error=ExportError
    )
    check_utf8(output.absolute(), error=ExportError)
    check_output(output, force=force)
    if repo is not None:
        check_target(repo)
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(
                total=_STEPS + (repo is not None) + build_engine,
                desc="export",
                unit="step",
                disable=None,
            )
        )

        stack.enter_context(_warnings_told())

        def step(message: str) -> None:
            bar.set_postfix_str(message, refresh=False)
            bar.update(1)
            if bar.disable and not as_json:
                click.echo(f"{message} …", err=True)

        # Importing torch takes seconds, and comes after most of what can fail.
        if random_weights:
            from bge_export.synthetic import random_model_facts, write_random_checkpoint

            facts = random_model_facts(model)
            step("making random weights")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_random_checkpoint(facts, folder, seed=seed, tokenizer=tokenizer, layers=layers)
        else:
            step("finding the checkpoint")
            folder, revision = find_checkpoint(model, revision=revision, offline=offline)
        checkpoint = inspect_checkpoint(
            folder,
            source=model,
            revision=revision,
            model_class=model_class,
            pooling=pooling,
            trust_remote_code=trust_remote_code,
        )
        step(f"{checkpoint.name}: {checkpoint.model_class}, {checkpoint.pooling} pooling")
        check_tokenizer_files(checkpoint.folder, model)
        rows = _export(
            checkpoint,
            output,
            (targets, precisions),
            force=force,
            trust_remote_code=trust_remote_code,
            random_seed=seed if random_weights else None,
            bar=bar,
            step=step,
        )
        if build_engine:
            step("building TensorRT's engines")
            build_engines(output)
        if repo is not None:
            step(f"uploading to {repo}")
            address = push(output, repo, private=private)
    if as_json:
        document = {"bundle": str(output.absolute()), "rows": [asdict(row) for row in rows]}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    click.echo(_table(rows))
    kind = " with RANDOM WEIGHTS, for benchmarks only" if random_weights else ""
    if repo is not None:
        click.echo(f"\nuploaded: {address}")
    able = any(row.parity is not None for row in rows)
    trial = f"Try it:\n    bge-embed {shlex.quote(str(output))} <<< 'a first text'"
    click.echo(f"\n{output} is ready{kind}. {trial if able else 'Nothing of it runs here'}")


class _Telling(logging.Handler):
    """Write warnings to standard error, where a progress bar may be."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"{WARNING_START}{record.getMessage()}", file=sys.stderr)


@contextmanager
def _warnings_told() -> Iterator[None]:
    logger, handler = logging.getLogger("bge_export"), _Telling(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _check_targets(
    model: str, model_class: str | None, targets: Sequence[str], precisions: Sequence[str]
) -> None:
    """Refuse early what no model of this name can be written as.

    Raises:
        ExportError: If a combination does not exist.
    """
    known = find_model(model)
    expected = model_class or (known.model_class if known else None)
    if expected in DECODER_CLASSES:
        select_decoder_targets(targets, precisions)
        return
    try:
        select_targets(targets, precisions)
    except ExportError:
        if expected is not None:
            raise
        # An unknown name may turn out to be a decoder's.
        select_decoder_targets(targets, precisions)


def _export(
    checkpoint: Checkpoint,
    output: Path,
    chosen: tuple[Sequence[str], Sequence[str]],
    *,
    force: bool,
    trust_remote_code: bool,
    random_seed: int | None,
    bar: tqdm[NoReturn],
    step: Callable[[str], None],
) -> list[VariantReport]:
    if checkpoint.model_class in DECODER_CLASSES:
        graphs = select_decoder_targets(*chosen)
        from bge_export.decoder import export_decoder

        bar.total = (bar.total or 0) + sum(len(graph.variants) for graph in graphs)
        return export_decoder(
            checkpoint, output, graphs, force=force, random_seed=random_seed, step=step
        )
    targets = select_targets(*chosen)
    from bge_export.encoder import export_bundle

    bar.total = (bar.total or 0) + sum(len(target.variants) for target in targets)
    return export_bundle(
        checkpoint,
        output,
        targets,
        force=force,
        trust_remote_code=trust_remote_code,
        random_seed=random_seed,
        step=step,
    )


def build_engines(output: Path) -> None:
    """Build the TensorRT engines of a bundle for this machine's first GPU.

    Raises:
        EngineError: If there is no such GPU, or TensorRT fails.
    """
    bundle = Bundle.open(output)
    for variant in bundle.manifest.variants:
        if variant.engine == "tensorrt":
            TensorRtEngine(bundle, variant).build()


def _default_output(model: str, *, random_weights: bool) -> Path:
    name = local_path(model, error=ExportError).resolve().name
    if random_weights:
        return Path(f"{name}-random")
    # Never the checkpoint's own folder, for someone who stands beside it.
    return Path(f"{name}-bundle" if Path(model).exists() else name)


def _table(rows: Sequence[VariantReport]) -> str:
    header = ("graph", "variant", "MB", "min cosine", "mean cosine", "error/distance", "seconds")
    lines = [
        (
            row.graph,
            f"{row.variant} on {row.provider}",
            f"{row.size_bytes / 1e6:,.0f}",
            *_figures(row.parity),
            f"{row.seconds:.1f}",
        )
        for row in rows
    ]
    rehearsed = [
        f"{row.variant} was rehearsed on the CPU, rounded as on a GPU: cosines of at least "
        f"{row.rehearsal.min_cosine:.7f}. It has not run on a GPU"
        for row in rows
        if row.rehearsal is not None
    ]
    return "\n".join([format_table([header, *lines]), *rehearsed])


def _figures(parity: Parity | None) -> tuple[str, str, str]:
    if parity is None:
        return ("unmeasured", "", "")
    return (
        f"{parity.min_cosine:.7f}",
        f"{parity.mean_cosine:.7f}",
        f"{parity.error_share:.2e}",
    )


if __name__ == "__main__":
    main()
