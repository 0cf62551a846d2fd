"""``bge-bench serve``: HTTP servers under load."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bge_bench.cli.console import one_line_errors, report
from bge_bench.cli.options import (
    checkpoint_option,
    data_option,
    device_option,
    json_option,
    threads_option,
    timeout_option,
)
from bge_bench.cli.progress import progress
from bge_bench.datasets.corpus import spread_sample
from bge_bench.datasets.named import named_texts
from bge_bench.environment import busy_percent
from bge_bench.experiments.overload import measure_overload
from bge_bench.experiments.serving import (
    BULK_TEXTS,
    PARITY_TEXTS,
    ServingPlan,
    Step,
    choose_infinity,
    measure_serving,
)
from bge_bench.reports.tables import document_tables
from bge_bench.systems.lineup import our_system
from bge_bench.systems.servers import (
    INFINITY,
    INFINITY_ENGINES,
    OURS,
    PLAIN,
    SERVERS,
    Server,
    ServerSpec,
    infinity_folder,
    infinity_unavailable_reason,
)
from bge_bench.systems.source import open_checkpoint
from bge_bench.workers.driver import Worker
from bge_runtime.bundle import Bundle
from bge_runtime.system import usable_cpus

_QUERIES = 60
_PASSAGES = 240
_OVERLOAD_PERCENT = 200


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@checkpoint_option
@device_option
@click.option(
    "--system", "systems", multiple=True, default=SERVERS, show_default=True,
    type=click.Choice(SERVERS), help="Repeatable; all take turns in one run.",
)  # fmt: skip
@click.option(
    "--infinity", "environment", default=".infinity", show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Virtual environment of infinity, made by `make infinity`.",
)  # fmt: skip
@click.option(
    "--infinity-engine", "engines", multiple=True, default=tuple(INFINITY_ENGINES),
    type=click.Choice(tuple(INFINITY_ENGINES)),
    help="Repeatable; the fastest of them takes part. Default: all.",
)  # fmt: skip
@click.option(
    "--precision", "precision", default="auto", show_default=True,
    type=click.Choice(("auto", "fp32", "bf16", "fp16", "int8")),
    help="Of the bundle, in bge-serve, the plain server and encode.",
)  # fmt: skip
@click.option(
    "--texts", "named", multiple=True, default=("xquad-en", "xquad-en-questions"),
    show_default=True, help="As in bge-bench throughput; one text a request. Repeatable.",
)  # fmt: skip
@click.option(
    "--queries", "queries", default="xquad-en-questions", show_default=True,
    help="Texts of the search queries.",
)  # fmt: skip
@click.option(
    "--passages", "passages", default="xquad-en", show_default=True,
    help="Texts of the bulk job that runs beside queries.",
)  # fmt: skip
@data_option
@click.option(
    "--count", default=480, show_default=True, type=click.IntRange(min=PARITY_TEXTS),
    help="Take so many of the texts, evenly by length.",
)  # fmt: skip
@click.option(
    "--clients", multiple=True, default=(1, 8, 64), show_default=True,
    type=click.IntRange(min=1), help="Of a closed loop; repeatable.",
)  # fmt: skip
@click.option(
    "--load", "loads", multiple=True, default=(50, 80, 200), show_default=True,
    type=click.IntRange(min=1),
    help="Rate of an open loop, in percent of a server's capacity; repeatable.",
)  # fmt: skip
@click.option(
    "--seconds", default=6.0, show_default=True, type=click.FloatRange(min=0.1),
    help="Of each measurement.",
)  # fmt: skip
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--overload", "overload_s", type=click.FloatRange(min=1),
    help=f"Instead: put bge-serve under {_OVERLOAD_PERCENT} % of its capacity for so many seconds.",
)  # fmt: skip
@click.option(
    "--client-processes", default=1, show_default=True, type=click.IntRange(min=1),
    help="Processes that share the clients; more for a server on a GPU.",
)  # fmt: skip
@click.option(
    "--serve-option", "serve_options", multiple=True, metavar="OPTION=VALUE",
    help="Further option of bge-serve, such as slice-ms=20; repeatable.",
)  # fmt: skip
@threads_option
@timeout_option
@json_option
def serve(bundle: Path, json_file: Path | None, **options: Any) -> None:
    """Put bge-serve under load beside infinity and a plain handler, and beside `encode` alone."""
    with one_line_errors():
        opened = Bundle.open(bundle)
        busy = busy_percent()
        with (
            tempfile.TemporaryDirectory(prefix="bge-bench-serve-") as name,
            progress(None) as step,
        ):
            run = _Run(bundle=opened, folder=Path(name), step=step, options=options)
            found = _tables(run) if options["overload_s"] is None else _overload(run)
        document = {
            "device": options["device"],
            "threads": run.threads,
            "processors": usable_cpus(),
            "client_processes": options["client_processes"],
            "busy_percent_before": busy,
            "texts": [*options["named"]],
            "text_count": len(run.plan.texts),
            **found,
        }
        report(json_file, opened, document, document_tables(document))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run in progress: the bundle, a folder for files, and the options."""

    bundle: Bundle
    folder: Path
    step: Step
    options: dict[str, Any]

    @property
    def threads(self) -> int:
        return self.options["threads"] or usable_cpus()

    @property
    def plan(self) -> ServingPlan:
        options, model = self.options, self.bundle.manifest.model

        def some(names: Sequence[str], count: int) -> list[str]:
            texts = sorted(named_texts(names, options["folder"]), key=len)
            chosen = spread_sample(texts, count)
            random.Random(0).shuffle(chosen)  # noqa: S311  # clients do not sort
            return chosen

        return ServingPlan(
            texts=some(options["named"], options["count"]),
            queries=some([options["queries"]], _QUERIES),
            passages=some([options["passages"]], _PASSAGES),
            query_format=_query_format(model.query_instruction, model.query_instruction_format),
            clients=sorted(set(options["clients"])),
            loads=sorted(set(options["loads"])),
            seconds=options["seconds"],
            rounds=options["rounds"],
            processors=usable_cpus(),
            client_processes=options["client_processes"],
        )

    def spec(self, system: str, **more: Any) -> ServerSpec:
        options = self.options
        return ServerSpec(
            label=system,
            system=system,
            model=str(self.bundle.path.absolute()),
            threads=self.threads,
            device=options["device"],
            precision=options["precision"],
            start_s=options["timeout_s"],
            **more,
        )

    @property
    def ours(self) -> ServerSpec:
        given = tuple(f"--{option}" for option in self.options["serve_options"])
        return self.spec(OURS, options=given)

    def infinity_specs(self, checkpoint: Path) -> list[ServerSpec]:
        folder = infinity_folder(self.bundle.path, checkpoint, self.folder / "infinity")
        environment = str(self.options["environment"])
        return [
            replace(self.spec(INFINITY, engine=engine, environment=environment), model=str(folder))
            for engine in dict.fromkeys(self.options["engines"])
        ]

    @contextmanager
    def encoder(self, device: str, precision: str) -> Iterator[Worker]:
        """Start a process of ``encode``."""
        own = our_system(self.bundle, threads=self.threads, device=device)
        spec = replace(own, precision=precision)
        with Worker(spec, timeout_s=self.options["timeout_s"]) as worker:
            yield worker

    def reference(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts in fp32, on the CPU."""
        with self.encoder("cpu", "fp32") as worker:
            return worker.embed(texts, self.folder)[1]


def _tables(run: _Run) -> dict[str, Any]:
    """Return the tables of all servers."""
    options, plan = run.options, run.plan
    run.step("encode in fp32")
    reference = run.reference(plan.texts[:PARITY_TEXTS])
    systems = [name for name in SERVERS if name in options["systems"]]
    left_out: dict[str, str] = {}
    found: dict[str, Any] = {}
    specs = [run.spec(PLAIN)] if PLAIN in systems else []
    if OURS in systems:
        specs.insert(0, run.ours)
    with ExitStack() as running:
        if INFINITY in systems:
            reason = infinity_unavailable_reason(options["environment"])
            if reason is not None:
                left_out[INFINITY] = reason
            else:
                # One engine is measured as well: it may be the wrong one, or not start.
                checkpoint = running.enter_context(
                    open_checkpoint(run.bundle, options["checkpoint"])
                )
                given = run.infinity_specs(checkpoint)
                best, found = choose_infinity(given, reference, plan, step=run.step)
                specs.append(replace(best, label=f"{INFINITY} {best.engine}"))
        run.step("start the servers")
        encoder = running.enter_context(run.encoder(options["device"], options["precision"]))
        servers = [running.enter_context(Server(spec)) for spec in specs]
        measured = measure_serving(
            servers, encoder, reference, plan, folder=run.folder, step=run.step
        )
    return {
        "kind": "serve",
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "clients": list(plan.clients),
        "loads": list(plan.loads),
        "bulk_texts": BULK_TEXTS,
        "serve_options": [*options["serve_options"]],
        "left_out": left_out,
        "infinity_engines": found,
        **measured,
    }


def _overload(run: _Run) -> dict[str, Any]:
    """Return what bge-serve does at twice its capacity."""
    run.step("start bge-serve")
    with Server(run.ours) as server:
        found = measure_overload(
            server,
            run.plan,
            percent=_OVERLOAD_PERCENT,
            seconds=run.options["overload_s"],
            step=run.step,
        )
        facts = server.facts()
    return {"kind": "overload", "server": facts, "overload": found}


def _query_format(instruction: str | None, template: str) -> str:
    """Return the format of a query with its instruction: ``{}`` stands for the query."""
    if not instruction:
        return "{}"
    escaped = instruction.replace("{", "{{").replace("}", "}}")
    return template.format(escaped, "{}")
