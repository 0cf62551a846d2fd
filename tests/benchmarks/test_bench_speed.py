import json
import os
import signal

import pytest
from click.testing import CliRunner

from bge_bench.cli import main
from bge_bench.driver import Worker
from bge_bench.errors import BenchError
from bge_bench.report import speed_table
from bge_bench.sides import OURS, SideSpec
from bge_bench.speed import (
    MEASURES,
    Comparison,
    SideResult,
    Workload,
    measure_speed,
    step_count,
)
from bge_runtime.parity import TOLERANCES, Parity


@pytest.fixture
def spec(tiny_bundle):
    return SideSpec(
        side=OURS, model=str(tiny_bundle), pooling="cls", max_length=512, batch_size=8, threads=1
    )


def comparison(**parity):
    def side(name, factor):
        return SideResult(
            name=name,
            in_force="somewhere",
            corpus_s=[1.0 * factor, 4.0 * factor, 2.0],
            query_ms=[[1.0 * factor, 2.0 * factor, 3.0 * factor]] * 3,
            first_vector_s=[1.0 * factor] * 3,
            process_s=[2.0 * factor] * 3,
            peak_memory_bytes=100_000_000 * factor,
        )

    exact = {"texts": 4, "min_cosine": 1.0, "mean_cosine": 1.0, "max_error": 0, "error_share": 0}
    measured = Parity(**(exact | parity))
    return Comparison(
        ours=side("ours 1", 1),
        baseline=side("theirs 2", 3),
        parity=measured,
        precision="fp32",
        failures=tuple(measured.failures(TOLERANCES["fp32"])),
    )


def test_speed_end_to_end(tiny_bundle, tmp_path):
    file = tmp_path / "speed.json"
    arguments = ["speed", str(tiny_bundle), "--sample", "5", "--rounds", "1", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "times better" in result.stdout
    document = json.loads(file.read_text())
    assert document["passed"] is True
    assert document["parity"]["texts"] == document["texts"]["count"] == 5
    assert document["baseline"]["name"] == "FlagEmbedding 1.4.2"
    assert "batches of 8" in document["baseline"]["in_force"]
    assert "CPUExecutionProvider" in document["ours"]["in_force"]
    for side in ("ours", "baseline"):
        assert len(document[side]["corpus_s"]) == 1
        assert len(document[side]["query_ms"][0]) == document["query_calls"]
        assert 0 < document[side]["first_vector_s"][0] < document[side]["process_s"][0]
        assert document[side]["peak_memory_bytes"] > 1e6
    assert set(document["times_faster"]) == set(MEASURES)


def test_sides_take_turns(spec):
    steps = []
    workload = Workload(texts=["one", "two words", "three more words"], rounds=2, query_calls=2)
    result = measure_speed(spec, spec, workload, step=steps.append)
    assert len(steps) == step_count(2)
    assert [step.partition(": ")[2] for step in steps[2:8]] == [
        "corpus, round 1 of 2",
        "corpus, round 1 of 2",
        "query, round 1 of 2",
        "query, round 1 of 2",
        "cold start, round 1 of 2",
        "cold start, round 1 of 2",
    ]
    assert result.parity.min_cosine == pytest.approx(1)
    assert len(result.baseline.process_s) == 2


def test_a_ratio_is_the_median_of_the_rounds_own():
    # 3, 3 and 1; the ratio of the medians would be 1.5.
    assert comparison().ratio("corpus_s") == 3


def test_a_run_whose_parity_failed_is_struck_out_and_has_no_ratio():
    failed = comparison(min_cosine=0.9)
    table = speed_table(failed, texts=4, busy_percent=0)
    assert "~~ours 1~~" in table
    assert "times better" not in table
    assert "minimum cosine" in table
    assert failed.to_json()["times_faster"] is None


def test_a_busy_machine_is_mentioned():
    assert "busy" not in speed_table(comparison(), texts=4, busy_percent=3)
    assert "71 % of this machine busy" in speed_table(comparison(), texts=4, busy_percent=71)


def test_a_side_that_cannot_start_says_why(spec, tmp_path):
    broken = SideSpec(**(vars(spec) | {"model": str(tmp_path / "nothing")}))
    with pytest.raises(BenchError, match=r"died \(exit status 1\)[\s\S]*no bundle at"):
        Worker(broken, query="q", timeout_s=60)


def test_a_side_that_dies_between_questions_is_noticed(spec):
    with Worker(spec, query="q", timeout_s=60) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="killed by signal 9"):
            worker.ask("memory")


def test_a_side_that_does_not_answer_is_not_waited_for(spec):
    with pytest.raises(BenchError, match="gave no answer to 'its first vector' within"):
        Worker(spec, query="q", timeout_s=0.001)
