"""Commands on a reranker: their unit is the pair, and scores are held against PyTorch's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.cli.table_run import TableRun
from bge_bench.datasets.corpus import paragraphs, read_texts
from bge_bench.datasets.named import named_pairs
from bge_bench.errors import BenchError
from bge_bench.experiments import speed
from bge_bench.experiments.timing import at_their_best
from bge_bench.reports.rows import failures
from bge_bench.reports.tables import document_tables
from bge_bench.reports.text import speed_table
from bge_bench.systems.base import SystemSpec, as_passages
from bge_bench.systems.lineup import line_up
from bge_bench.workers.journal import Journal
from bge_bench.workers.pool import Settings
from bge_runtime import Bundle
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint

pytestmark = pytest.mark.usefixtures("made_once")


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch):
    """Hold all against plain ONNX Runtime, and measure no rate: both take seconds."""

    def reference(run: TableRun) -> SystemSpec:
        return replace(run.candidates[0].spec, system="onnxruntime", batch_size=1)

    monkeypatch.setattr(TableRun, "reference", property(reference))
    monkeypatch.setattr("bge_bench.cli.table_run.measure_rates", lambda *_: {"fp32": 1e11})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(paragraphs(12)), "utf-8")
    return path


def run(command: str, *arguments: object, status: int = 0) -> str:
    given = [command, reranker_bundle(), "--checkpoint", reranker_checkpoint(), *arguments]
    result = CliRunner().invoke(main, [str(argument) for argument in given])
    assert result.exit_code == status, result.output
    return result.output


def document_of(command: str, *arguments: object) -> dict:
    document = json.loads(run(command, *arguments, "--json", "-"))
    assert document_tables(document)
    return document


def throughput(texts: Path, count: int, *baselines: str) -> dict:
    return document_of(
        "throughput", "--texts", texts, "--sample", 6, "--count", count, "--rounds", 1,
        "--batch-size", 4, "--precision", "fp32",
        *(argument for name in baselines for argument in ("--baseline", name)),
    )  # fmt: skip


def test_throughput_is_of_pairs_and_the_slow_ones_score_those_of_one_query(texts: Path):
    document = throughput(texts, 18, "onnxruntime")
    assert document["full"]["texts"] == 18
    assert document["sample"]["texts"] == 6
    ours, bare = document["rows"]
    assert ours["full_s"]
    assert not bare["full_s"]
    for row in document["rows"]:
        assert row["parity"]["pairs"] == 6
        assert not failures(row)
        assert row["peak_memory_bytes"] > 0
    table = document_tables(document)
    assert "pairs/s" in table
    assert "rank correlation" in table
    assert "18 pairs of" in table


def test_one_query_is_not_timed_twice(monkeypatch: pytest.MonkeyPatch, texts: Path):
    given = {}

    def measured(candidates, _reference, pairs, sample, **_):
        given.update(candidates=candidates, pairs=pairs, sample=sample)
        raise BenchError("enough")

    monkeypatch.setattr("bge_bench.cli.tables.measure_throughput", measured)
    run("throughput", "--texts", texts, "--sample", 6, "--count", 6, status=1)
    assert given["pairs"] == given["sample"]
    assert not any(candidate.in_full for candidate in given["candidates"])


def test_baselines_may_keep_the_batch_size_that_they_come_with():
    bundle = Bundle.open(reranker_bundle())
    names = ["flagembedding", "fastembed", "sentence-transformers"]
    candidates, _ = line_up(bundle, reranker_checkpoint(), baselines=names, threads=1)
    settings = Settings(journal=Journal(None, {}), step=print, rounds=1, timeout_s=1)
    pairs = as_passages(["a", "b"])
    specs = at_their_best(candidates, pairs, pairs, batch_sizes=(), settings=settings)
    assert {spec.system: spec.batch_size for spec in specs if spec.system in names} == {
        "flagembedding": 128, "fastembed": 64, "sentence-transformers": 32,
    }  # fmt: skip


def test_latency_is_that_of_a_query_with_few_and_many_passages(
    texts: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bge_bench.cli.tables._PASSAGES", (1, 5))
    document = document_of(
        "latency", "--texts", texts, "--rounds", 1, "--calls", 2, "--batch-size", 4,
        "--baseline", "onnxruntime", "--precision", "fp32",
    )  # fmt: skip
    assert [point["texts"] for point in document["points"].values()] == [1, 5]
    assert all(len(calls[0]) == 2 for row in document["rows"] for calls in row["ms"].values())
    assert "5 pairs of at most" in document_tables(document)


def test_speed_is_of_passages_of_one_query(texts: Path):
    bundle = Bundle.open(reranker_bundle())
    lineup = speed.line_up(
        bundle, reranker_checkpoint(), baselines=["onnxruntime"], baseline_batch_size=4, threads=1
    )
    assert lineup.reference.system == "transformers"
    lineup = replace(lineup, reference=lineup.baselines[0])
    workload = speed.Workload(texts=as_passages(read_texts(texts)), rounds=1, query_calls=1)
    result = speed.measure_speed(lineup, workload, step=lambda _: None)
    assert not result.ours.failures
    document = result.to_json()
    assert document["ours"]["parity"]["pairs"] == 12
    assert document["ours"]["tolerance"]["min_rank_correlation"] > 0.9
    table = speed_table(result, texts=12, busy_percent=0)
    assert "12 pairs" in table
    assert "max difference" in table


def test_speed_takes_a_files_texts_as_passages(texts: Path, monkeypatch: pytest.MonkeyPatch):
    given = {}

    def measured(_lineup, workload, **_):
        given.update(pairs=workload.texts)
        raise BenchError("enough")

    monkeypatch.setattr("bge_bench.cli.main.measure_speed", measured)
    run("speed", "--texts", texts, status=1)
    assert [passage for _, passage in given["pairs"]] == read_texts(texts)
    assert len({query for query, _ in given["pairs"]}) == 1


def test_parity_is_of_scores_by_the_class_and_in_padded_batches():
    document = json.loads(run("parity", "--json", "-"))
    assert document["passed"] is True
    assert {row["call"] for row in document["rows"]} == {"FlagReranker", "padded"}
    assert {row["reference"].split()[0] for row in document["rows"]} == {
        "FlagEmbedding", "transformers",
    }  # fmt: skip
    for row in document["rows"]:
        assert row["info"]["precision"] == "fp32"
        assert row["parity"]["rank_correlation"] > 0.999


def test_parity_tells_of_scores_that_are_not_pytorchs(monkeypatch: pytest.MonkeyPatch, texts: Path):
    from bge_bench.systems.rerankers import FlagEmbedding

    honest = FlagEmbedding.encode
    swapped = lambda self, pairs: honest(self, [pair[::-1] for pair in pairs])  # noqa: E731
    monkeypatch.setattr(FlagEmbedding, "encode", swapped)
    output = run("parity", "--texts", texts, "--against", "flagembedding", status=1)
    assert "FAIL: FlagReranker" in output
    assert "rank correlation" in output


class TestNamedPairs:
    def test_each_query_has_passages_of_its_own(self, texts: Path):
        pairs = named_pairs([str(texts)], None, queries=2, passages=5)
        assert len(pairs) == 10
        first, second = pairs[:5], pairs[5:]
        assert len({query for query, _ in first}) == len({query for query, _ in second}) == 1
        assert first[0][0] != second[0][0]
        assert len({passage for _, passage in first}) == 5
        assert [passage for _, passage in first] != [passage for _, passage in second]
        assert pairs == named_pairs([str(texts)], None, queries=2, passages=5)

    def test_a_datasets_questions_are_the_queries(self, shared_data: Path):
        folder = shared_data / "text"
        (query, _), *_ = named_pairs(["xquad-en"], folder, queries=1, passages=2)
        assert query.endswith("?")

    def test_too_few_passages_are_refused(self, texts: Path):
        with pytest.raises(BenchError, match="12 passages, and 1 queries with 13"):
            named_pairs([str(texts)], None, queries=1, passages=13)
