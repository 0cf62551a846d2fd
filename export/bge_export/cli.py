"""The command ``bge-export``: turn a checkpoint into a bundle."""

from __future__ import annotations

import ctypes
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click
from tqdm import tqdm

try:
    from bge_export.bundle import (
        ExportOptions,
        Progress,
        VariantReport,
        check_output,
        check_target,
        push,
    )
    from bge_export.checkpoint import check_tokenizer_files, find_checkpoint, inspect_checkpoint
    from bge_export.targets import (
        format_target_table,
        select_decoder_targets,
        select_encoder_targets,
    )
except ImportError as missing:
    sys.exit(f"bge-export: {missing}. Run `pip install 'bge-runtime[export]'`")
from bge_runtime.bundle import Bundle, Parity, ScoreParity
from bge_runtime.cli.command_line import command_line
from bge_runtime.engines import TensorRtEngine
from bge_runtime.errors import ExportError
from bge_runtime.sources import (
    DECODER_CLASSES,
    MODEL_CLASSES,
    POOLING_METHODS,
    RERANKER_CLASSES,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    WARNING_START,
    find_model,
)
from bge_runtime.system import check_utf8, expand_user, format_table, local_path

_STEPS = 2
"""Steps of the command before the exporter's own."""

_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20
"""From glibc's malloc.h: blocks of this size are mapped separately."""


@click.command(
    epilog="Targets and precisions:\n\n\b\n" + format_target_table(),
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
    type=click.Choice((*MODEL_CLASSES, *RERANKER_CLASSES)),
    help="FlagEmbedding's class. Default: that of the checkpoint's files, else of its name.",
)
@click.option(
    "--pooling",
    type=click.Choice(POOLING_METHODS),
    help="Default: the model's own, else the default of --model-class.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="Repeatable. Default: every target that is not marked 'on request'; with --precision, "
    "every one of that precision, of decoders those called cpu. With --precision, a target may "
    "also be a device or engine name.",
)
@click.option(
    "--precision", "precisions", multiple=True, help="Repeatable. Default: those of the targets."
)
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--offline", is_flag=True, help="Use only the Hub's local cache.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--trust-remote-code", is_flag=True, help="Run model code from the checkpoint.")
@click.option(
    "--random-weights",
    is_flag=True,
    help="The named architecture with seeded random weights: for benchmarks and tests.",
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    help="With --random-weights: use fewer layers than the model has.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of random weights.")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --random-weights: folder with the tokenizer. Default: a generated one.",
)
@click.option(
    "--build-engine",
    is_flag=True,
    help="With --target tensorrt, on the machine with the GPU: build its engines into the cache "
    "now, not at the first use.",
)
@click.option("--push-to-hub", "repo", metavar="OWNER/NAME", help="Upload the bundle too.")
@click.option("--private", is_flag=True, help="With --push-to-hub: create a private repository.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@command_line("bge-export")
def main(**options: Any) -> None:
    """Export MODEL to a bundle that runs without PyTorch.

    MODEL is a Hub ID such as BAAI/bge-large-en-v1.5, a checkpoint folder, or with
    --random-weights the name of a model.
    """
    request = _Request(**options)
    _check_options(request)
    _check_targets(request)
    default = _default_output(request.model, random_weights=request.random_weights)
    output = expand_user(request.output or default, error=ExportError)
    check_utf8(output.absolute(), error=ExportError)
    check_output(output, force=request.force)
    if request.repo is not None:
        check_target(request.repo)
    with _print_warnings(), _ProgressBar(request) as progress:
        reports = _export(request, output, progress)
        if request.build_engine:
            progress.step("building TensorRT's engines")
            build_engines(output)
        address = None
        if request.repo is not None:
            progress.step(f"uploading to {request.repo}")
            address = push(output, request.repo, private=request.private)
    _print_result(request, output, reports, address)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The arguments of the command; see its options."""

    model: str
    output: Path | None
    model_class: str | None
    pooling: str | None
    targets: Sequence[str]
    precisions: Sequence[str]
    revision: str | None
    offline: bool
    force: bool
    trust_remote_code: bool
    random_weights: bool
    layers: int | None
    seed: int
    tokenizer: Path | None
    build_engine: bool
    repo: str | None
    private: bool
    as_json: bool


def _check_options(request: _Request) -> None:
    """Refuse options that contradict each other.

    Raises:
        click.UsageError: If they do.
    """
    of_random_weights = request.layers is not None or request.tokenizer is not None
    of_checkpoints = request.revision is not None or request.offline or request.trust_remote_code
    for wrong, message in (
        (
            of_random_weights and not request.random_weights,
            "--layers and --tokenizer are for --random-weights; a checkpoint has its own",
        ),
        (
            request.random_weights and of_checkpoints,
            "--revision, --offline and --trust-remote-code are for checkpoints",
        ),
        (request.private and request.repo is None, "--private is for --push-to-hub"),
        (
            request.build_engine and "tensorrt" not in request.targets,
            "--build-engine is for --target tensorrt",
        ),
    ):
        if wrong:
            raise click.UsageError(message)


def _check_targets(request: _Request) -> None:
    """Refuse targets that no model of this name has, before its files are read.

    Raises:
        ExportError: If a combination does not exist.
    """
    known = find_model(request.model)
    expected = request.model_class or (known.model_class if known else None)
    if expected in (*DECODER_CLASSES, RERANKER_DECODER):
        select_decoder_targets(request.targets, request.precisions)
        return
    scores = expected == RERANKER_ENCODER
    try:
        select_encoder_targets(request.targets, request.precisions, scores=scores)
    except ExportError:
        if expected is not None:
            raise
        # An unknown name may be a decoder's.
        select_decoder_targets(request.targets, request.precisions)


class _ProgressBar(Progress):
    """The progress bar of an export. It has no total until the exporter knows its steps."""

    def __init__(self, request: _Request) -> None:
        self._quiet = request.as_json
        self._steps = _STEPS + (request.repo is not None) + request.build_engine
        self._bar = tqdm(desc="export", unit="step", disable=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def add_steps(self, count: int) -> None:
        self._steps += count
        self._bar.total = self._steps

    def step(self, message: str) -> None:
        self._bar.set_postfix_str(message, refresh=False)
        self._bar.update(1)
        if self._bar.disable and not self._quiet:
            click.echo(f"{message} …", err=True)

    def describe(self, message: str) -> None:
        self._bar.set_postfix_str(message)


class _WarningPrinter(logging.Handler):
    """Prints warnings to standard error without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(f"{WARNING_START}{record.getMessage()}", file=sys.stderr)


@contextmanager
def _print_warnings() -> Iterator[None]:
    logger, handler = logging.getLogger("bge_export"), _WarningPrinter(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _export(request: _Request, output: Path, progress: Progress) -> list[VariantReport]:
    """Find or create the checkpoint, and export it."""
    with ExitStack() as stack:
        if request.random_weights:
            # Imports torch, which takes seconds, so it comes after most of what can fail.
            from bge_export.synthetic import find_random_model, write_random_checkpoint

            spec, revision = find_random_model(request.model), request.revision
            progress.step("making random weights")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_random_checkpoint(
                spec,
                folder,
                seed=request.seed,
                tokenizer=request.tokenizer,
                layers=request.layers,
            )
        else:
            progress.step("finding the checkpoint")
            folder, revision = find_checkpoint(
                request.model, revision=request.revision, offline=request.offline
            )
        checkpoint = inspect_checkpoint(
            folder,
            source=request.model,
            revision=revision,
            model_class=request.model_class,
            pooling=request.pooling,
            trust_remote_code=request.trust_remote_code,
        )
        progress.step(f"{checkpoint.name}: {checkpoint.model_class}, {checkpoint.pooling} pooling")
        check_tokenizer_files(checkpoint.folder, request.model)
        options = ExportOptions(
            force=request.force,
            trust_remote_code=request.trust_remote_code,
            random_seed=request.seed if request.random_weights else None,
        )
        if checkpoint.model_class in (*DECODER_CLASSES, RERANKER_DECODER):
            decoder_targets = select_decoder_targets(request.targets, request.precisions)
            from bge_export.decoder import export_decoder

            _tune_malloc()
            return export_decoder(checkpoint, output, decoder_targets, options, progress)
        scores = checkpoint.model_class == RERANKER_ENCODER
        targets = select_encoder_targets(request.targets, request.precisions, scores=scores)
        from bge_export.encoder import export_encoder

        return export_encoder(checkpoint, output, targets, options, progress)


def _tune_malloc() -> None:
    """Make this process's allocator return large blocks to the system as soon as they are freed.

    Otherwise glibc keeps them, and a decoder's layers of different sizes leave holes: 480 MB
    instead of 340 for a model of 1 GB. Other C libraries do not have this setting.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


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
    # Never the checkpoint's own folder, if that is in the current folder.
    return Path(f"{name}-bundle" if Path(model).exists() else name)


def _print_result(
    request: _Request, output: Path, reports: Sequence[VariantReport], address: str | None
) -> None:
    if request.as_json:
        rows = [report.to_json() for report in reports]
        document = {"bundle": str(output.absolute()), "rows": rows}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    click.echo(_format_reports(reports))
    if address is not None:
        click.echo(f"\nuploaded: {address}")
    kind = " with RANDOM WEIGHTS, for benchmarks only" if request.random_weights else ""
    able = any(report.parity is not None for report in reports)
    command, line = ("bge-embed", "a first text")
    if any(isinstance(report.parity, ScoreParity) for report in reports):
        command, line = ("bge-rerank", '{"query": "a query", "passages": ["one", "another"]}')
    trial = f"Try it:\n    {command} {shlex.quote(str(output))} <<< {shlex.quote(line)}"
    click.echo(f"\n{output} is ready{kind}. {trial if able else 'This machine cannot run it'}")


def _format_reports(reports: Sequence[VariantReport]) -> str:
    kinds = {type(report.parity or report.emulated) for report in reports}
    columns = ScoreParity.COLUMNS if ScoreParity in kinds else Parity.COLUMNS
    header = ("graph", "variant", "MB", *columns, "seconds")
    lines = [
        (
            report.graph,
            f"{report.variant} on {report.ran_on}",
            f"{report.size_bytes / 1e6:,.0f}",
            *(report.parity.cells() if report.parity else ("unmeasured", "", "")),
            f"{report.seconds:.1f}",
        )
        for report in reports
    ]
    emulated = [
        f"{report.variant} was emulated on the CPU, rounded as on a GPU: "
        f"{columns[0]} {report.emulated.cells()[0]}. It has not run on a GPU"
        for report in reports
        if report.emulated is not None
    ]
    return "\n".join([format_table([header, *lines]), *emulated])


if __name__ == "__main__":
    main()
