"""``bge-serve``: serve models over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bge_runtime._version import __version__
from bge_runtime.cli.command_line import command_line
from bge_runtime.cli.streams.input import InputError
from bge_runtime.engines import ENGINES
from bge_runtime.errors import BgeError
from bge_runtime.models import AnyFlagModel
from bge_runtime.rerankers import AnyReranker
from bge_runtime.serving import ServeOptions, open_served_model

_DEFAULTS = ServeOptions()

_OF_A_MODEL = (
    "engine", "precision", "threads", "revision", "query_instruction", "passage_instruction"
)  # fmt: skip
"""Options that are those of `open_served_model`."""


@click.command(context_settings={"max_content_width": 100})
@click.argument("models", metavar="MODEL[=NAME]...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any."
)
@click.option("--device", "devices", multiple=True, help="Where to run; repeatable. Default: cpu.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=f"{', '.join(ENGINES)}: use this one, or fail. auto: the fastest for the precision.",
)
@click.option(
    "--precision",
    help="fp32, bf16, fp16, int8, int4: use this one, or fail. Default: the fastest with verified "
    "parity.",
)
@click.option("--threads", type=click.IntRange(1), help="Default: all usable processors.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--query-instruction", help="Default: the one an embedder's authors recommend.")
@click.option("--passage-instruction", help="Default: none.")
@click.option(
    "--max-length",
    type=click.IntRange(3),
    help="Tokens at which texts, or pairs, are cut. Default: what the model can read, and 8192 at "
    "most.",
)
@click.option(
    "--api-keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with a key in each line, of which requests must send one.",
)
@click.option("--cors-origin", "cors_origins", multiple=True, help="Repeatable. Default: none.")
@click.option(
    "--max-inputs",
    type=click.IntRange(1),
    default=_DEFAULTS.max_inputs,
    show_default=True,
    help="Maximum texts of a request.",
)
@click.option(
    "--max-request-tokens",
    type=click.IntRange(1),
    default=_DEFAULTS.max_request_tokens,
    show_default=True,
    help="Maximum tokens of a request.",
)
@click.option(
    "--max-body-mb",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULTS.max_body_bytes / 1e6,
    show_default=True,
    help="Maximum megabytes of a request.",
)
@click.option(
    "--max-queued-tokens",
    type=click.IntRange(1),
    help="Maximum tokens that wait, for queries and for bulk work each; a request that is larger "
    "counts as half of it. Default: what is computed in 2 s and in 60 s, and 16384 at least.",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULTS.request_timeout_s,
    show_default=True,
    help="Seconds for a request; the header x-request-timeout-ms may ask for fewer.",
)
@click.option(
    "--engine-timeout",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULTS.engine_timeout_s,
    show_default=True,
    help="Seconds after which a batch has stalled: its requests fail, and so does /health.",
)
@click.option(
    "--drain-timeout",
    type=click.FloatRange(1),
    default=_DEFAULTS.drain_timeout_s,
    show_default=True,
    help="Seconds to answer what was accepted, after SIGTERM.",
)
@click.option(
    "--slice-ms",
    type=click.FloatRange(1),
    default=1000 * _DEFAULTS.slice_s,
    show_default=True,
    help="Milliseconds of a slice of bulk work, for which a query may have to wait.",
)
@click.option("--allow-token-ids", is_flag=True, help="Accept token ids at /v1/embeddings.")
@click.option("--no-parallel-batches", is_flag=True, help="Do without a second engine on a CPU.")
@click.option("--no-ui", is_flag=True, help="Do not serve the page at /ui.")
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="json: an object in each line.",
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
    help="info logs each request, without its texts.",
)
@click.option("--otlp-endpoint", help="Where to send traces; needs the extra otel.")
@click.version_option(__version__)
@command_line("bge-serve")
def main(models: tuple[str, ...], host: str, port: int, **options: Any) -> None:
    """Serve each MODEL over HTTP, as OpenAI, TEI, Cohere, Ollama, Weaviate and Qdrant have it.

    MODEL is an embedder or a reranker: a bundle, or the Hub ID of one or of a checkpoint, as for
    bge-embed. Several are served below their names, with NAME in place of a model's own: bge-serve
    ./a=docs ./b=queries.
    """
    serving = _import_serving()
    serving.set_up_logging(level=options["log_level"], as_json=options["log_format"] == "json")
    keys = _read_keys(options["api_keys"])
    opened = _open_models(models, options)
    serve_options = ServeOptions(
        api_keys=keys,
        cors_origins=options["cors_origins"],
        max_inputs=options["max_inputs"],
        max_request_tokens=options["max_request_tokens"],
        max_body_bytes=int(options["max_body_mb"] * 1e6),
        max_queued_tokens=options["max_queued_tokens"],
        request_timeout_s=options["request_timeout"],
        engine_timeout_s=options["engine_timeout"],
        drain_timeout_s=options["drain_timeout"],
        slice_s=options["slice_ms"] / 1000,
        allow_token_ids=options["allow_token_ids"],
        parallel_batches=not options["no_parallel_batches"],
        page=not options["no_ui"],
        otlp_endpoint=options["otlp_endpoint"],
    )
    try:
        app = serving.create_app(opened, serve_options, max_length=options["max_length"])
    except ValueError as error:
        raise InputError(str(error)) from error

    def report(url: str) -> None:
        for name, model in opened.items():
            click.echo(f"bge-serve: {name}: {model.engine.info}", err=True)
        click.echo(f"bge-serve: listening on {url}", err=True)

    serving.run_server(app, host=host, port=port, on_ready=report)
    if any(model.scheduler.is_computing for model in app.state.models):
        # Python would wait for engines that do not answer, or end under those that compute.
        os._exit(0)


def _import_serving() -> Any:
    try:
        from bge_runtime import serving

        serving.create_app  # noqa: B018  # imports the packages
    except ImportError as error:
        raise BgeError(
            f"bge-serve needs packages that are not installed ({error}). "
            "Run `pip install 'bge-runtime[cpu,serve]'`"
        ) from error
    return serving


def _read_keys(file: Path | None) -> Sequence[str]:
    if file is None:
        return ()
    keys = [line.strip() for line in file.read_text("utf-8").splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise InputError(f"{file} has no API key; write one in each line")
    return keys


def _split_name(given: str) -> tuple[str, str]:
    """Return a model and the name that is given to it, which may be none."""
    if "=" not in given or Path(given).exists():
        return given, ""
    source, _, name = given.rpartition("=")
    return source, name


def _open_models(
    models: Sequence[str], options: dict[str, Any]
) -> dict[str, AnyFlagModel | AnyReranker]:
    opened: dict[str, AnyFlagModel | AnyReranker] = {}
    for given in models:
        source, name = _split_name(given)
        click.echo(f"bge-serve: loading {source}", err=True)
        model = open_served_model(
            source,
            devices=list(options["devices"]) or None,
            **{name: options[name] for name in _OF_A_MODEL},
        )
        name = name or model.name
        if name in opened:
            raise InputError(
                f"two models are called {name!r}; give one another name: bge-serve {source}=NAME"
            )
        opened[name] = model
    return opened
