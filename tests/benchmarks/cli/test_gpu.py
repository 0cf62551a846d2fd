"""What a run on a GPU is made of, on a CPU: processes that stay open, and what the driver says."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from bge_bench.cli import gpu
from bge_bench.cli.main import main
from bge_bench.cli.tables import throughput
from bge_bench.datasets.corpus import paragraphs
from bge_bench.errors import BenchError
from bge_bench.experiments.timing import _gpu_bytes
from bge_bench.systems.base import SystemSpec
from bge_bench.workers import pool
from bge_bench.workers.pool import Pool

LAST_WORDS = "the process died; its last words:\n    a\n    ImportError: datasets"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SystemSpec]:
    """Specifications of the processes that a pool started; sentence-transformers' all die."""
    specs: list[SystemSpec] = []

    class Counted(pool.Worker):
        def __init__(self, spec, **options):
            specs.append(spec)
            if spec.system == "sentence-transformers":
                raise BenchError(LAST_WORDS)
            super().__init__(spec, **options)

    monkeypatch.setattr(pool, "Worker", Counted)
    return specs


def test_each_candidate_is_opened_once_and_one_that_does_not_start_is_left_out(
    tiny_bundle, tiny_checkpoint, tmp_path, monkeypatch, started
):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(paragraphs(12)), "utf-8")
    corpus = {"named": [str(texts)], "sample": 4, "batch_sizes": (2, 4)}
    for name, count in (("full-throughput", None), ("mixed-throughput", 20)):
        monkeypatch.setitem(gpu._TABLES, name, (throughput, corpus | {"count": count}))
    rates = []
    monkeypatch.setattr(
        "bge_bench.cli.table_run.measure_rates", lambda *a: rates.append(a) or {"fp32": 1e11}
    )
    only = [
        x for name in ("full-throughput", "mixed-throughput", "latency") for x in ("--only", name)
    ]
    arguments = [
        "gpu", tiny_bundle, "--checkpoint", tiny_checkpoint, "--device", "cpu", "--rounds", "1",
        "--calls", "2", "--baseline", "transformers", "--baseline", "sentence-transformers",
        "--output", tmp_path / "out", *only,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    # Ours, the baselines, and the reference, which is held to fp32.
    assert sorted(spec.system for spec in started) == [
        "bge-runtime", "sentence-transformers", "transformers", "transformers",
    ]  # fmt: skip
    assert len(rates) == 1
    full, mixed, latency = (
        json.loads((tmp_path / "out" / f"gpu-{name}.json").read_text("utf-8"))
        for name in ("full-throughput", "mixed-throughput", "latency")
    )
    assert (full["full"]["texts"], mixed["full"]["texts"]) == (12, 20)
    assert (full["repeated_to"], mixed["repeated_to"]) == (None, 20)
    baseline = full["rows"][1]
    assert baseline["batch_size"] in (2, 4)
    assert baseline["in_force"].endswith(f"batches of {baseline['batch_size']}")
    # Of a few texts at once all are in one batch again.
    assert latency["rows"][1]["in_force"].endswith("batches of 256")
    why = "the process died; its last words: … ImportError: datasets"
    for document in (full, mixed, latency):
        assert document["left_out"] == {"sentence-transformers": why}
        assert [row["label"] for row in document["rows"]] == ["bge-runtime fp32", "transformers"]
        assert all(row["parity"]["min_cosine"] > 0.99999 for row in document["rows"])


def test_one_that_does_not_start_leaves_none_behind(tiny_bundle: Path, started):
    good = SystemSpec(
        system="bge-runtime", model=str(tiny_bundle), pooling="cls", max_length=64, batch_size=8
    )
    bad = SystemSpec(**(vars(good) | {"model": "/nothing/here"}))
    with Pool() as pool:
        error, none = pool.start([bad, good], timeout_s=120)
        assert isinstance(error, BenchError)
        assert none is None
        with pytest.raises(BenchError, match="process died"):
            pool.worker(bad, timeout_s=120)
    assert [worker._process.poll() is not None for worker in pool._open.values()] == [True]
    assert len(started) == 2  # none is tried again


def test_without_ours_there_is_no_table(tiny_bundle, tiny_checkpoint, tmp_path, monkeypatch):
    def start(spec, **_):
        if spec.system == "bge-runtime":
            raise BenchError(LAST_WORDS)
        return Mock()  # nobody is asked anything

    monkeypatch.setattr(pool, "Worker", start)
    given = [
        "gpu", tiny_bundle, "--checkpoint", tiny_checkpoint, "--device", "cpu", "--rounds", "1",
        "--calls", "1", "--baseline", "transformers", "--only", "latency", "--output", tmp_path,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in given])
    assert result.exit_code == 1
    assert "ImportError: datasets" in result.output


def test_memory_of_a_gpu_is_what_its_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"nvidia-smi --id=1.*does not say what cuda:1 holds"):
        _gpu_bytes("cuda:1")
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\n[ "$1" = --id=1 ] && echo "1234 MiB"\n', "utf-8")
    fake.chmod(0o755)
    assert _gpu_bytes("cuda:1") == 1234 << 20


def test_a_random_checkpoint_can_be_kept(tmp_path: Path):
    def make(*arguments: object) -> str:
        given = ["checkpoint", "bge-small-zh", tmp_path / "kept", *arguments]
        result = CliRunner().invoke(main, [str(argument) for argument in given])
        return result.output if result.exit_code else ""

    assert make("--layers", 1) == ""
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["num_hidden_layers"] == 1
    assert not (tmp_path / "kept.part").exists()
    assert "already there" in make()
