"""Compare a job over files with `encode` on the same texts in memory.

Both run in processes of their own, in turns: a share of the shards, then the texts of these shards.
So the one does not count in the other's memory, and both see the same noise of the machine.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bge_bench.errors import BenchError

_WRITTEN_AT_ONCE = 10_000
_COMPARED = 256


@dataclass(frozen=True, kw_only=True)
class BulkPlan:
    """What is measured.

    Attributes:
        bundle: The bundle.
        texts: Texts that are repeated, each time with another number in front.
        rows: Rows of the input.
        rounds: Turns of the job and of `encode`.
        threads: Threads of both; None for all.
        precision: Precision of both; None for the fastest.
        outputs: Arguments of `embed_dataset` that say what to write.
    """

    bundle: Path
    texts: Sequence[str]
    rows: int
    rounds: int
    threads: int | None
    precision: str | None
    outputs: dict[str, Any]


def measure_bulk(plan: BulkPlan, folder: Path, step: Callable[[str], object]) -> dict[str, Any]:
    """Return the time of a job and of `encode`, and the memory of the job.

    Args:
        plan: What to measure.
        folder: Where to write the input and the output.
        step: Receives a message at the start of each step.
    """
    step(f"writing {plan.rows:,} rows")
    source = write_rows(plan.texts, plan.rows, folder / "input.parquet")
    rounds = []
    with _process(_serve_job, plan) as job, _process(_serve_encode, plan) as encode:
        opened = {"job": job(None), "encode": encode(None)}
        for number in range(plan.rounds):
            sides = {
                "job": lambda share: job((source, folder / "output", share)),
                "encode": lambda share: encode((source, None, share)),
            }
            names = ("job", "encode") if number % 2 == 0 else ("encode", "job")
            share = (number, plan.rounds)
            found = {}
            for name in names:
                step(f"round {number + 1} of {plan.rounds}: {name}")
                found[name] = sides[name](share)
            rounds.append(found)
        step("comparing vectors")
        parity = encode((source, folder / "output", None))
        again_s = job((source, folder / "output", (0, plan.rounds)))["seconds"]
    return {
        "rows": plan.rows,
        "outputs": plan.outputs,
        "opened": opened,
        "rounds": rounds,
        "job_texts_per_s": _rate(rounds, "job"),
        "encode_texts_per_s": _rate(rounds, "encode"),
        "job_of_encode": _rate(rounds, "job") / _rate(rounds, "encode"),
        "parity": parity,
        "nothing_to_do_s": again_s,
        "input_bytes": source.stat().st_size,
        "output_bytes": sum(file.stat().st_size for file in (folder / "output").glob("part-*")),
    }


def write_rows(texts: Sequence[str], rows: int, file: Path) -> Path:
    """Write texts with numbers in front to a Parquet file, and return its path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, _WRITTEN_AT_ONCE):
            numbers = range(start, min(rows, start + _WRITTEN_AT_ONCE))
            columns = [
                [f"row-{number}" for number in numbers],
                [f"{number} {texts[number % len(texts)]}" for number in numbers],
            ]
            writer.write_table(pa.table(columns, schema=schema))
    return file


def _rate(rounds: Sequence[dict[str, Any]], side: str) -> float:
    found = [each[side] for each in rounds]
    return float(sum(each["texts"] for each in found) / sum(each["seconds"] for each in found))


@contextmanager
def _process(
    serve: Callable[[Connection, BulkPlan], None], plan: BulkPlan
) -> Iterator[Callable[[Any], Any]]:
    """Run a function in a new process, and yield a function that asks it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, plan), daemon=True)
    process.start()
    theirs.close()

    def ask(question: Any) -> Any:
        try:
            ours.send(question)
            answer = ours.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise BenchError("a process of the benchmark has ended; see its message") from None
        if isinstance(answer, str):
            raise BenchError(answer)
        return answer

    try:
        yield ask
    finally:
        ours.close()
        process.join(timeout=10)
        process.kill()


def _answer(connection: Connection, answer: Callable[[Any], dict[str, Any]]) -> None:
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            connection.send(answer(question))
        except Exception as error:  # noqa: BLE001  # the other process reports it
            connection.send(f"{type(error).__name__}: {error}")


def _serve_job(connection: Connection, plan: BulkPlan) -> None:
    from bge_runtime.bulk import embed_dataset

    model, facts = _open(plan)

    def answer(question: Any) -> dict[str, Any]:
        if question is None:
            return facts
        source, output, (number, of) = question
        summary = embed_dataset(
            model, source, output, id="id", shard=f"{number + 1}/{of}", show_progress=False,
            **plan.outputs,
        )  # fmt: skip
        return {
            "seconds": summary.seconds,
            "texts": summary.rows,
            "tokens": summary.tokens,
            "peak_memory_bytes": _peak_memory_bytes(),
        }

    _answer(connection, answer)


def _serve_encode(connection: Connection, plan: BulkPlan) -> None:
    import pyarrow.parquet as pq

    from bge_runtime.bulk import default_rows_per_shard

    model, facts = _open(plan)
    size = default_rows_per_shard(colbert=bool(plan.outputs.get("return_colbert_vecs")))

    def answer(question: Any) -> dict[str, Any]:
        if question is None:
            return facts
        source, output, share = question
        column = pq.read_table(source, columns=["text"])["text"]
        if share is None:
            dense = plan.outputs.get("return_dense", True)
            return _parity(model, column[:_COMPARED].to_pylist(), output) if dense else {}
        number, of = share
        shards = range(number * size, len(column), of * size)
        texts = [text for start in shards for text in column.slice(start, size).to_pylist()]
        started = time.perf_counter()
        model.encode(texts, show_progress_bar=False, **plan.outputs)
        return {
            "seconds": time.perf_counter() - started,
            "texts": len(texts),
            "peak_memory_bytes": _peak_memory_bytes(),
        }

    _answer(connection, answer)


def _parity(model: Any, texts: list[str], output: Path) -> dict[str, Any]:
    """Return how close the first dense vectors of a job are to those of `encode`."""
    import numpy as np
    import pyarrow.parquet as pq

    shard = pq.read_table(min(output.glob("part-*.parquet")), columns=["dense"])
    written = shard["dense"][: len(texts)].combine_chunks().flatten().to_numpy()
    found = model.encode(texts, show_progress_bar=False)
    expected = found["dense_vecs"] if isinstance(found, dict) else found
    written = written.reshape(expected.shape)
    cosines = (written * expected).sum(axis=1) / (
        np.linalg.norm(written, axis=1) * np.linalg.norm(expected, axis=1)
    )
    error = np.abs(written - expected).max()
    return {
        "texts": len(texts),
        "min_cosine": float(cosines.min()),
        "max_abs_error": float(error),
    }


def _open(plan: BulkPlan) -> tuple[Any, dict[str, Any]]:
    from bge_runtime import FlagAutoModel

    started = time.perf_counter()
    model = FlagAutoModel.from_finetuned(
        str(plan.bundle), threads=plan.threads, precision=plan.precision
    )
    # Engines for parallel batches are opened by the first long call.
    model.encode(["a warm-up text of some words " * 8] * 512, show_progress_bar=False)
    facts = {"seconds": time.perf_counter() - started, "engine": asdict(model.engine.info)}
    return model, json.loads(json.dumps(facts, default=str))


def _peak_memory_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )
