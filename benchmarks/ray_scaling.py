"""Measure two actors on two processors beside one actor with one thread, with Ray Data.

    python benchmarks/ray_scaling.py BUNDLE CORPUS.jsonl RESULT.json

CORPUS has a text in the field ``text`` of each line. It needs ``bge-runtime[cpu,ray]`` and two
processors without other work. Each pair of runs gives a ratio. A run counts the texts of the time
in which all of its actors compute, so that their start is left out.
"""  # noqa: INP001  # a script of its own, since bge_bench needs PyTorch

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa  # noqa: TID253
import ray  # noqa: TID253

from bge_runtime import __version__
from bge_runtime.integrations.ray import Embedder
from bge_runtime.system import cpu_model, vector_extensions

TEXTS, BATCH, PAIRS = 240, 16, 3


class TimedEmbedder(Embedder):
    """Tells of each batch which process computed it, and when."""

    def __call__(self, batch: Any) -> pa.Table:
        """Return a row for a batch."""
        start = time.time()
        rows = len(super().__call__(batch))
        row = {"process": [os.getpid()], "start": [start], "end": [time.time()], "rows": [rows]}
        return pa.table(row)


def texts_per_s(dataset: Any, bundle: str, actors: int, precision: str) -> float:
    """Return the texts in a second while all actors compute."""
    batches = dataset.map_batches(
        TimedEmbedder,
        fn_constructor_kwargs={"model": bundle, "model_options": {"precision": precision}},
        batch_size=BATCH,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
    ).take_all()
    processes = {batch["process"] for batch in batches}
    assert len(processes) == actors, processes
    of_each = [[batch for batch in batches if batch["process"] == each] for each in processes]
    start = max(min(batch["start"] for batch in each) for each in of_each)
    end = min(max(batch["end"] for batch in each) for each in of_each)
    done = 0.0
    for batch in batches:
        inside = min(batch["end"], end) - max(batch["start"], start)
        done += batch["rows"] * max(0.0, inside) / (batch["end"] - batch["start"])
    return done / (end - start)


def main(bundle: str, corpus: Path, result: Path) -> None:
    """Measure, and write the result."""
    lines = corpus.read_text("utf-8").splitlines()
    paragraphs = [json.loads(line)["text"] for line in lines]
    texts = (paragraphs * (TEXTS // len(paragraphs) + 1))[:TEXTS]
    ray.init(num_cpus=2, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_arrow(pa.table({"text": texts})).repartition(TEXTS // BATCH)
    dataset = dataset.materialize()
    rows: list[dict[str, Any]] = []
    for precision in ("fp32", "auto"):
        for _ in range(PAIRS):
            load = os.getloadavg()[0]
            one = texts_per_s(dataset, bundle, 1, precision)
            two = texts_per_s(dataset, bundle, 2, precision)
            rows.append(
                {
                    "precision": precision, "load_before": load, "one_actor_texts_per_s": one,
                    "two_actors_texts_per_s": two, "ratio": two / one,
                }
            )  # fmt: skip
            sys.stderr.write(f"{rows[-1]}\n")
            document = {
                "command": ["python", "benchmarks/ray_scaling.py", Path(bundle).name, corpus.name],
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "versions": {"bge-runtime": __version__, "ray": ray.__version__},
                "hardware": {"processor": cpu_model(), "extensions": vector_extensions()},
                "texts": TEXTS,
                "batch_size": BATCH,
                "rows": rows,
            }
            result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
