"""Tables: every candidate does the work, a stopped run resumes, wrong vectors are struck out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bge_bench.cli.main import main
from bge_bench.datasets.corpus import paragraphs
from bge_bench.errors import BenchError
from bge_bench.experiments import timing
from bge_bench.experiments.roofline import needed_flop
from bge_bench.reports.rows import failures
from bge_bench.reports.tables import latency_rows, markdown, throughput_rows
from bge_bench.systems import lineup
from bge_bench.systems.base import open_system
from bge_bench.workers.journal import Journal, header_of
from bge_bench.workers.pool import Settings
from bge_runtime import Bundle
from tests.helpers.bundles import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def _few_rates(monkeypatch: pytest.MonkeyPatch):
    """The machine's own rate takes seconds to measure; one test does it."""
    monkeypatch.setattr("bge_bench.cli.table_run.measure_rates", lambda *_: {"fp32": 1e11})


@pytest.fixture
def _light_reference(monkeypatch: pytest.MonkeyPatch):
    """Hold all against plain ONNX Runtime: PyTorch takes seconds to start."""

    def reference(run):
        return replace(run.candidates[0].spec, system="onnxruntime", batch_size=1)

    monkeypatch.setattr("bge_bench.cli.table_run.TableRun.reference", property(reference))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(paragraphs(12)), "utf-8")
    return path


def throughput(
    bundle: Path, checkpoint: Path, texts: Path, json_file: Path, *, baselines: Sequence[str]
) -> str:
    return run(
        "throughput", bundle, "--checkpoint", checkpoint, "--texts", texts, "--json", json_file,
        *(argument for name in baselines for argument in ("--baseline", name)),
        "--precision", "fp32", "--rounds", 2, "--sample", 4, "--batch-size", 2,
    )  # fmt: skip


def test_throughput(tiny_bundle: Path, tiny_checkpoint: Path, texts: Path, tmp_path: Path):
    output = throughput(
        tiny_bundle, tiny_checkpoint, texts, tmp_path / "t.json",
        baselines=["onnxruntime", "fastembed"],
    )  # fmt: skip
    document = json.loads((tmp_path / "t.json").read_text())
    assert [row["label"] for row in document["rows"]] == [
        "bge-runtime fp32", "fastembed", "onnxruntime",
    ]  # fmt: skip
    ours, *baselines = document["rows"]
    assert len(ours["full_s"]) == len(ours["sample_s"]) == 2
    for row in baselines:
        assert row["full_s"] == []
        assert row["batch_size"] == 2
        assert not failures(row)
        assert row["parity"]["texts"] == 4
    assert document["full"]["texts"] == 12
    assert document["sample"]["tokens"] < document["full"]["tokens"]
    assert output.count("x\n") >= 2
    assert not (tmp_path / "t.json.journal").exists()


@pytest.mark.usefixtures("_light_reference")
def test_a_stopped_run_goes_on(
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    embed, calls = timing.LazyWorker.embed, []

    def stops(system, given_texts):
        calls.append(system.candidate.label)
        if len(calls) == 7:  # in the second round
            raise KeyboardInterrupt
        return embed(system, given_texts)

    monkeypatch.setattr(timing.LazyWorker, "embed", stops)
    arguments = (tiny_bundle, tiny_checkpoint, texts, tmp_path / "t.json")
    with pytest.raises(AssertionError):
        throughput(*arguments, baselines=["onnxruntime"])
    journal = tmp_path / "t.json.journal"
    before = journal.read_text()
    timed = [json.loads(line) for line in before.split("\n")[1:-1]]
    kept = {entry["key"]: entry["value"] for entry in timed}
    assert "sample/bge-runtime fp32/0" in kept
    journal.write_text(before + '{"key": "sample/cut sho')  # while it was written
    monkeypatch.setattr(timing.LazyWorker, "embed", embed)
    throughput(*arguments, baselines=["onnxruntime"])
    document = json.loads((tmp_path / "t.json").read_text())
    assert document["rows"][0]["sample_s"][0] == kept["sample/bge-runtime fp32/0"]["seconds"]


def test_the_journal_of_another_run_is_not_continued(tmp_path: Path):
    path = tmp_path / "a.journal"
    assert Journal(path, {"texts": "a"}).get("key", lambda: [1]) == [1]
    assert Journal(path, {"texts": "a"}).get("key", list) == [1]
    with pytest.raises(BenchError, match="begun by another run"):
        Journal(path, {"texts": "b"})


def test_a_bundle_exported_anew_or_another_processor_is_another_run(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    anew = shutil.copytree(tiny_bundle, tmp_path / "anew")
    same = header_of("speed", Bundle.open(tiny_bundle), rounds=1)
    assert header_of("speed", Bundle.open(anew), rounds=1) == same
    monkeypatch.setattr("bge_bench.environment.vector_extensions", lambda: ("avx512_bf16",))
    assert header_of("speed", Bundle.open(anew), rounds=1) != same
    monkeypatch.undo()
    with (anew / "bge.json").open("a", encoding="utf-8") as manifest:
        manifest.write("\n")
    assert header_of("speed", Bundle.open(anew), rounds=1) != same


def test_wrong_vectors_are_struck_out():
    file = RESULTS / "2026-11-26-bge-small-zh-throughput-two-peers-avx2.json"
    document = json.loads(file.read_text("utf-8"))
    document["rows"][1]["parity"]["min_cosine"] = 0.9
    lines = markdown(throughput_rows(document)).split("\n")
    assert lines[3].startswith(f"| ~~{document['rows'][1]['label']}")
    assert lines[3].rstrip(" |").endswith("~~")
    assert "x |" in lines[4]
    # If they are ours, nobody is compared with them.
    document["rows"][0]["parity"]["min_cosine"] = 0.9
    assert "ours in fp32" not in markdown(throughput_rows(document))


@pytest.mark.parametrize(
    ("seconds", "tried", "best"),
    [
        ({2: 1.0, 8: 1.2, 32: 0.5}, [2, 8, 32], 32),
        ({2: 1.0, 8: 1.4, 32: 0.5}, [2, 8], 2),
        ({2: 2.0, 8: 1.0, 32: 1.4}, [2, 8, 32], 8),
    ],
)
def test_a_batch_size_is_sought_as_long_as_there_is_hope(seconds, tried, best, monkeypatch):
    asked = []

    def embed(_texts, *, batch_size):
        asked.append(batch_size)
        return seconds[batch_size], None

    monkeypatch.setattr(timing, "open_workers", lambda *_, **__: nullcontext([Mock(embed=embed)]))
    settings = Settings(journal=Journal(None, {}), step=Mock(), rounds=1, timeout_s=1)
    assert timing._best(Mock(label="a"), ["text"], [8, 32, 2], settings) == best
    assert list(dict.fromkeys(asked)) == tried


def test_who_cannot_take_part_is_named(
    tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(lineup._PACKAGES, "fastembed", ("no_such_package.at_all",))
    options = {"baselines": ["fastembed", "transformers"], "threads": 1}
    found, left_out = lineup.line_up(Bundle.open(tiny_bundle), tiny_checkpoint, **options)
    assert left_out == {
        "fastembed": "no_such_package.at_all is not installed; pip install 'bge-runtime[bench]'"
    }
    assert [candidate.label for candidate in found] == ["bge-runtime fp32", "transformers"]
    with pytest.raises(BenchError, match="no variant in int8"):
        lineup.line_up(Bundle.open(tiny_bundle), tiny_checkpoint, precisions=["int8"], **options)


@pytest.mark.parametrize(
    ("extensions", "takes_part"),
    [(("avx2",), False), (("avx2", "avx512f"), True), (("asimd", "bf16"), True), ((), True)],
)
def test_pytorch_in_bf16_takes_part_where_it_has_kernels_for_it(
    extensions, takes_part, tiny_bundle, tiny_checkpoint, monkeypatch
):
    monkeypatch.setattr(lineup, "vector_extensions", lambda: extensions)
    system = "sentence-transformers-bf16"
    found, left_out = lineup.line_up(
        Bundle.open(tiny_bundle), tiny_checkpoint, baselines=[system], threads=1
    )
    assert (system in [candidate.label for candidate in found]) == takes_part
    assert ("no fast products in bf16" in left_out.get(system, "")) != takes_part


def test_cuda_graphs_take_part_beside_us(tiny_checkpoint, tiny_gpu_bundle, monkeypatch):
    monkeypatch.setattr(lineup, "unavailable_reason", lambda _: None)

    def labels(**options):
        found, _ = lineup.line_up(
            Bundle.open(tiny_gpu_bundle), tiny_checkpoint, baselines=[], threads=1, **options
        )
        return {candidate.label: candidate.spec.cuda_graphs for candidate in found}

    plain, graphs = "bge-runtime fp16", "bge-runtime fp16, CUDA graphs"
    assert labels(device="cuda:0", cuda_graphs=True) == {plain: False, graphs: True}
    assert labels(device="cuda:0") == {plain: False}
    assert labels(cuda_graphs=True) == {"bge-runtime fp32": False}


def test_ours_takes_part_once_more_with_one_batch_at_a_time(
    tiny_bundle: Path, tiny_checkpoint: Path
):
    found, _ = lineup.line_up(
        Bundle.open(tiny_bundle), tiny_checkpoint, baselines=[], threads=2, no_parallel_batches=True
    )
    labels = ["bge-runtime fp32", "bge-runtime fp32, one batch at a time"]
    assert [candidate.label for candidate in found] == labels
    systems = [open_system(candidate.spec) for candidate in found]
    assert [bool(system._model._engines.parallel) for system in systems] == [True, False]
    assert ["in parallel" in system.in_force for system in systems] == [True, False]
    # How many times faster ours is stands in each line but its own.
    file = RESULTS / "2026-11-26-bge-base-natural-throughput-avx2.json"
    ratios = {row[0]: row[-1] for row in throughput_rows(json.loads(file.read_text("utf-8")))}
    assert [ratios[label] for label in labels] == ["", "1.09x"]


@pytest.mark.parametrize("flags", [[], ["--no-parallel-batches"]])
def test_that_is_asked_for(tiny_bundle: Path, tiny_checkpoint: Path, texts: Path, flags):
    with pytest.MonkeyPatch.context() as patch:
        line_up = Mock(side_effect=BenchError("enough"))
        patch.setattr("bge_bench.cli.table_run.line_up", line_up)
        common = ["--checkpoint", str(tiny_checkpoint), "--texts", str(texts), *flags]
        CliRunner().invoke(main, ["throughput", str(tiny_bundle), *common])
    assert line_up.call_args.kwargs["no_parallel_batches"] == bool(flags)


@pytest.mark.usefixtures("_light_reference")
def test_latency_and_cold_start(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path):
    common = ["--checkpoint", tiny_checkpoint, "--baseline", "onnxruntime", "--rounds", "1"]
    output = run("latency", tiny_bundle, *common, "--calls", "3", "--json", tmp_path / "l.json")
    document = json.loads((tmp_path / "l.json").read_text())
    assert 56 < document["points"]["1x64"]["tokens"] <= 64
    assert document["points"]["32x128"]["texts"] == 32
    for row in document["rows"]:
        assert all(len(rounds[0]) == 3 for rounds in row["ms"].values())
        assert row["parity"]["min_cosine"] > 0.999999
    assert "32 x 128 tokens" in output
    lines = markdown(latency_rows(document)).splitlines()
    assert lines[0].endswith("| min cosine | error/distance |")
    assert "~~" not in "".join(lines)
    document["rows"][0]["parity"]["min_cosine"] = 0.9
    assert "~~bge-runtime fp32~~" in markdown(latency_rows(document))
    del document["rows"][0]["parity"]  # as in documents of before
    assert "min cosine" not in markdown(latency_rows(document))
    output = run("cold-start", tiny_bundle, *common, "--json", tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    assert [len(row["first_vector_s"]) for row in document["rows"]] == [1, 1]
    assert all(row["peak_memory_bytes"][0] > 10e6 for row in document["rows"])


def test_scaling_and_memory(tiny_bundle: Path, tiny_checkpoint: Path, texts: Path, tmp_path: Path):
    common = ["--checkpoint", tiny_checkpoint, "--precision", "fp32"]
    run(
        "scaling", tiny_bundle, *common, "--texts", texts, "--size", 8, "--size", 30,
        "--baseline", "onnxruntime", "--json", tmp_path / "s.json",
    )  # fmt: skip
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["sizes"]["30"]["tokens"] > document["sizes"]["8"]["tokens"]
    assert [row["label"] for row in document["rows"]] == ["bge-runtime fp32", "onnxruntime"]
    assert list(document["rows"][0]["seconds"]) == ["8", "30"]
    run("memory", tiny_bundle, *common, "--count", 1000, "--json", tmp_path / "m.json")
    (row,) = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert row["texts"] == 1000
    assert len(row["held_bytes"]) == 2


def test_decoders_are_sent_elsewhere(tiny_bundle: Path, tiny_checkpoint: Path):
    bundle = Bundle.open(tiny_bundle)
    model = replace(bundle.manifest.model, model_class="decoder-only-base")
    other = Bundle(bundle.path, replace(bundle.manifest, model=model))
    with pytest.raises(BenchError, match="bge-bench speed"):
        lineup.line_up(other, tiny_checkpoint, baselines=[], threads=1)


def test_the_machine_has_a_rate():
    from bge_bench.experiments.roofline import measure_rates

    rates = measure_rates(1)
    assert {"fp32", "int8"} <= set(rates) <= {"fp32", "bf16", "int8"}
    assert all(1e8 < rate < 1e15 for rate in rates.values())


CONFIG = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 3}


def multiplications(tokens: int, pooling: str) -> int:
    """Count by multiplying: matrices of ones, and the sum of what each product took."""
    count = 0

    def product(rows: int, inner: int, columns: int) -> None:
        nonlocal count
        count += int((np.ones((rows, inner)) @ np.ones((inner, columns))).sum())

    for layer in range(3):
        queries = 1 if pooling == "cls" and layer == 2 else tokens
        product(tokens, 8, 8)  # keys
        product(tokens, 8, 8)  # values
        product(queries, 8, 8)
        product(queries, 8, tokens)
        product(queries, tokens, 8)
        product(queries, 8, 8)
        product(queries, 8, 32)
        product(queries, 32, 8)
    return count


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4))
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_needed_arithmetic(pooling: str, lengths: list[int]):
    expected = 2 * sum(multiplications(tokens, pooling) for tokens in lengths)
    assert needed_flop(CONFIG, pooling, lengths) == expected
