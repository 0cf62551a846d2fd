import json
import os
import signal
from dataclasses import replace
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.errors import BenchError
from bge_bench.experiments.speed import (
    MEASURES,
    Comparison,
    Lineup,
    SystemResult,
    Workload,
    line_up,
    measure_speed,
    step_count,
)
from bge_bench.reports.text import speed_table
from bge_bench.systems.base import OURS, SystemSpec
from bge_bench.workers.driver import Worker
from bge_bench.workers.journal import Journal
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import Parity
from tests.helpers.decoder_rerankers import export_tiny_reranker


@pytest.fixture
def spec(tiny_bundle):
    return SystemSpec(
        system=OURS, model=str(tiny_bundle), pooling="cls", max_length=512, batch_size=8, threads=1
    )


EXACT = {"texts": 4, "min_cosine": 1.0, "mean_cosine": 1.0, "max_error": 0, "error_share": 0}


def result(name, factor, precision="fp32", **parity):
    return SystemResult(
        name=name,
        precision=precision,
        in_force="somewhere",
        corpus_s=[1.0 * factor, 4.0 * factor, 2.0],
        query_ms=[[1.0 * factor, 2.0 * factor, 3.0 * factor]] * 3,
        first_vector_s=[1.0 * factor] * 3,
        process_s=[2.0 * factor] * 3,
        peak_memory_bytes=100_000_000 * factor,
        parity=Parity(**(EXACT | parity)),
    )


def comparison(ours=None, other=None):
    return Comparison(
        ours=result("ours 1", 1, **(ours or {})),
        baselines=(result("theirs 2", 3), result("others 3", 5, **(other or {}))),
        reference="theirs 2",
        reference_in_force="somewhere",
    )


def test_speed_end_to_end(tiny_bundle, tmp_path):
    file = tmp_path / "speed.json"
    arguments = ["speed", str(tiny_bundle), "--sample", "5", "--rounds", "1", "--json", str(file)]
    arguments += ["--baseline", "onnxruntime", "--baseline", "flagembedding"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "times better than FlagEmbedding 1.4.2" in result.stdout
    assert "times better than onnxruntime" in result.stdout
    document = json.loads(file.read_text())
    assert document["passed"] is True
    assert document["reference"]["name"] == "FlagEmbedding 1.4.2"
    bare, flagembedding = document["baselines"]
    assert flagembedding["name"] == "FlagEmbedding 1.4.2"
    assert "batches of 8" in flagembedding["in_force"]
    assert bare["name"].startswith("onnxruntime ")
    assert "CPUExecutionProvider" in document["ours"]["in_force"]
    for system in (document["ours"], bare, flagembedding):
        assert system["parity"]["texts"] == document["texts"]["count"] == 5
        assert system["parity"]["max_error"] < 1e-5
        assert len(system["corpus_s"]) == 1
        assert len(system["query_ms"][0]) == document["query_calls"]
        assert 0 < system["first_vector_s"][0] < system["process_s"][0]
        assert system["peak_memory_bytes"] > 1e6
    for baseline in (bare, flagembedding):
        assert set(baseline["times_faster"]) == set(MEASURES)


def test_another_run_does_not_go_on_with_what_was_measured(tiny_bundle, tmp_path):
    file = tmp_path / "speed.json"
    given = ["speed", str(tiny_bundle), "--sample", "5", "--rounds", "1", "--json", str(file)]
    given += ["--baseline", "onnxruntime"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bge_bench.cli.main.measure_speed", Mock(side_effect=BenchError("enough")))
        first = CliRunner().invoke(main, given)
    assert "enough" in first.output
    for other in (["--baseline-batch-size", "2"], ["--precision", "fp32"], ["--rounds", "2"]):
        result = CliRunner().invoke(main, [*given, *other])
        assert result.exit_code == 1
        assert "begun by another run" in result.output
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bge_bench.cli.main.measure_speed", lambda *_, **__: comparison())
        result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_systems_take_turns(spec):
    steps = []
    other, third = (replace(spec, system=system) for system in ("onnxruntime", "fastembed"))
    lineup = Lineup(ours=spec, baselines=(other, third), reference=other)
    workload = Workload(texts=["one", "two words", "three more words"], rounds=2, query_calls=2)
    result = measure_speed(lineup, workload, step=steps.append)
    assert len(steps) == step_count(lineup, 2)
    systems = [OURS, "onnxruntime", "fastembed"]
    assert [step for step in steps if step.endswith(("corpus", "query", "cold start"))] == [
        f"{system}: {what}"
        for turns in (systems, [*systems[1:], *systems[:1]])
        for what in ("corpus", "query", "cold start")
        for system in turns
    ]
    assert result.ours.parity.min_cosine == pytest.approx(1)
    assert [len(system.process_s) for system in result.baselines] == [2, 2]


def test_a_stopped_run_goes_on_where_it_was(spec, tmp_path):
    other = replace(spec, system="onnxruntime")
    lineup = Lineup(ours=spec, baselines=(other,), reference=other)
    workload = Workload(texts=["one", "two words"], rounds=1, query_calls=2)
    file = tmp_path / "speed.json"

    def stop(step):
        if step == f"{OURS}: query":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_speed(lineup, workload, step=stop, journal=Journal.beside(file, {}))
    steps = []
    measure_speed(lineup, workload, step=steps.append, journal=Journal.beside(file, {}))
    assert [step for step in steps if "warm up" not in step] == [
        f"{system}: {what}" for what in ("query", "cold start") for system in (OURS, "onnxruntime")
    ]
    # Nothing is left to do, and no process is started for it.
    measure_speed(lineup, workload, step=pytest.fail, journal=Journal.beside(file, {}))


class TestTheReference:
    @pytest.fixture
    def names(self, tiny_bundle, tiny_checkpoint):
        def names(*baselines):
            lineup = line_up(
                Bundle.open(tiny_bundle),
                tiny_checkpoint,
                baselines=baselines,
                baseline_batch_size=4,
                threads=1,
            )
            assert lineup.reference.model == str(tiny_checkpoint)
            return lineup.reference.system, lineup.reference in lineup.baselines

        return names

    def test_is_the_first_baseline_that_pytorch_computes(self, names):
        asked = ("onnxruntime", "sentence-transformers", "flagembedding")
        assert names(*asked) == ("sentence-transformers", True)

    def test_is_asked_beside_baselines_that_read_the_bundle(self, names):
        assert names("onnxruntime", "fastembed") == ("transformers", False)

    def test_is_not_timed_then(self, spec, tiny_checkpoint):
        steps = []
        reference = replace(spec, system="transformers", model=str(tiny_checkpoint))
        bare = replace(spec, system="onnxruntime")
        lineup = Lineup(ours=spec, baselines=(bare,), reference=reference)
        workload = Workload(texts=["one", "two words"], rounds=1, query_calls=1)
        result = measure_speed(lineup, workload, step=steps.append)
        assert len(steps) == step_count(lineup, 1)
        assert [step for step in steps if "reference" in step] == [
            "the reference's vectors of 2 texts",
            "the reference: start and warm up",
        ]
        assert result.reference.startswith("transformers ")
        assert "torch" in result.reference_in_force
        assert result.ours.parity.max_error < 1e-5


def test_a_ratio_is_the_median_of_the_rounds_own():
    # 3, 3 and 1; the ratio of the medians would be 1.5.
    run = comparison()
    assert [run.ratio(baseline, "corpus_s") for baseline in run.baselines] == [3, 5]


def test_a_run_whose_parity_failed_is_struck_out_and_has_no_ratio():
    failed = comparison(ours={"min_cosine": 0.9})
    table = speed_table(failed, texts=4, busy_percent=0)
    assert "~~ours 1~~" in table
    assert "~~theirs 2~~" not in table
    assert "times better" not in table
    assert "minimum cosine" in table
    document = failed.to_json()
    assert document["passed"] is False
    assert [system["times_faster"] for system in document["baselines"]] == [None, None]


def test_a_baseline_whose_parity_failed_is_struck_out_and_the_others_stay():
    failed = comparison(other={"min_cosine": 0.9})
    table = speed_table(failed, texts=4, busy_percent=0)
    assert "~~others 3~~" in table
    assert "FAIL: others 3 is struck out" in table
    assert "times better than theirs 2" in table
    assert "times better than others 3" not in table
    document = failed.to_json()
    assert document["passed"] is True
    assert document["baselines"][0]["times_faster"]["corpus_s"] == 3
    assert document["baselines"][1]["times_faster"] is None


def test_each_system_has_the_tolerance_of_its_own_precision():
    off = {"min_cosine": 0.9998, "max_error": 1e-3, "error_share": 0.02}
    assert not result("other", 1, precision="bf16", **off).failures
    assert len(result("other", 1, precision="fp32", **off).failures) == 3


def test_a_baseline_that_disagrees_is_marked_in_a_real_run(tiny_bundle, tiny_mean_bundle):
    spec = SystemSpec(
        system=OURS, model=str(tiny_bundle), pooling="cls", max_length=512, batch_size=8, threads=1
    )
    bare = replace(spec, system="onnxruntime")
    astray = replace(spec, system="fastembed", model=str(tiny_mean_bundle), pooling="mean")
    lineup = Lineup(ours=spec, baselines=(bare, astray), reference=bare)
    workload = Workload(texts=["one", "two words", "three more words"], rounds=1, query_calls=1)
    run = measure_speed(lineup, workload, step=lambda _: None)
    assert not run.ours.failures
    assert run.comparable == [run.baselines[0]]
    assert run.baselines[1].failures


def test_a_busy_machine_is_mentioned():
    assert "busy" not in speed_table(comparison(), texts=4, busy_percent=3)
    assert "71 % of this machine busy" in speed_table(comparison(), texts=4, busy_percent=71)


def test_a_system_that_cannot_start_says_why(spec, tmp_path):
    broken = SystemSpec(**(vars(spec) | {"model": str(tmp_path / "nothing")}))
    with pytest.raises(BenchError, match=r"died \(exit status 1\)[\s\S]*no bundle at"):
        Worker(broken, timeout_s=60)


def test_a_system_that_dies_between_questions_is_noticed(spec):
    with Worker(spec, timeout_s=60) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="killed by signal 9"):
            worker.ask("state")


def test_a_system_that_does_not_answer_is_not_waited_for(spec):
    with pytest.raises(BenchError, match="gave no answer to 'its first vector' within"):
        Worker(spec, timeout_s=0.001)


def test_decoders_that_rerank_are_compared_with_those_that_ask_alike(tmp_path):
    bundle = Bundle.open(export_tiny_reranker(tmp_path, "qwen3", targets=("cpu",)))
    options = {"baseline_batch_size": 4, "threads": 1}
    lineup = line_up(bundle, tmp_path, baselines=["transformers"], **options)
    assert lineup.reference.system == "transformers"
    with pytest.raises(BenchError, match="flagembedding and transformers only, not with fastembed"):
        line_up(bundle, tmp_path, baselines=["fastembed"], **options)
