import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.datasets.corpus import short_texts
from bge_bench.errors import BenchError
from bge_bench.experiments.retrieval import (
    SCORE_LIMITS,
    Difference,
    RetrievalResult,
    ScoreLimit,
    SystemScores,
    measure_retrieval,
    runnable_precisions,
)
from bge_bench.experiments.tasks import RerankingTask, RetrievalTask, open_task
from bge_bench.reports.retrieval import retrieval_table
from bge_bench.systems.base import OURS, SystemSpec, open_system
from bge_runtime import FlagModel
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import TOLERANCES
from bge_runtime.system.file_hash import file_sha256
from tests.helpers.decoders import export_decoder, write_tiny_decoder
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint

PASSAGES = short_texts(60, words=12)


@pytest.fixture(scope="session")
def search_task(tmp_path_factory):
    """Passages of our own, and questions that are the middle words of every second of them."""
    folder = tmp_path_factory.mktemp("tasks") / "ours"
    folder.mkdir()
    corpus = [{"_id": f"p{n}", "title": "", "text": text} for n, text in enumerate(PASSAGES)]
    queries = [
        {"_id": f"q{n}", "text": " ".join(text.split()[3:8])}
        for n, text in enumerate(PASSAGES)
        if n % 2 == 0
    ]
    queries.append({"_id": "unjudged", "text": "nothing answers this"})
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrels = "".join(f"q{n}\tp{n}\t1\n" for n in range(0, len(PASSAGES), 2))
    (folder / "qrels.tsv").write_text(qrels)
    return folder


@pytest.fixture(scope="session")
def pairs_task(tmp_path_factory):
    """Pairs of texts that share so many words, with that number as their score."""
    file = tmp_path_factory.mktemp("tasks") / "pairs.csv"
    rows = [
        f"{text},{' '.join([*text.split()[: n % 10], *other.split()[n % 10 :]])},{n % 10}\n"
        for n, (text, other) in enumerate(zip(PASSAGES[::2], PASSAGES[1::2], strict=True))
    ]
    file.write_text("".join(rows).replace(", ", " "))
    return file


@pytest.fixture
def miswired_bundle(bundle_copy, tiny_mean_bundle):
    """A bundle that says cls, whose CPU graph takes the mean, and whose hashes agree."""
    name = "onnx/model_cpu_fp32.onnx"
    path = bundle_copy / name
    shutil.copy(tiny_mean_bundle / name, path)
    manifest = json.loads((bundle_copy / "bge.json").read_text())
    manifest["files"][name] = {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (bundle_copy / "bge.json").write_text(json.dumps(manifest))
    return bundle_copy


def run(*arguments):
    return CliRunner().invoke(main, ["retrieval", *map(str, arguments)])


def both(search_task, pairs_task):
    return ("--task", search_task, "--task", pairs_task)


def test_a_bundle_scores_as_pytorch_does(tiny_bundle, search_task, pairs_task, tmp_path):
    file = tmp_path / "retrieval.json"
    result = run(tiny_bundle, *both(search_task, pairs_task), "--json", file)
    assert result.exit_code == 0, result.output
    document = json.loads(file.read_text())
    assert document["passed"] is True
    assert document["reference"]["name"] == "FlagEmbedding 1.4.2"
    assert document["versions"]["torch"]
    assert [
        (task["name"], task.get("questions"), task.get("pairs")) for task in document["tasks"]
    ] == [
        ("ours", 30, None),
        ("pairs.csv", None, 30),
    ]
    assert document["tasks"][1]["sha256"] == {"pairs.csv": file_sha256(pairs_task)}
    (system,) = document["sides"]
    assert system["asked"] == ["auto", "fp32"]  # the same variant, run once
    assert "CPUExecutionProvider" in system["in_force"]
    scores = system["scores"]
    assert set(scores["ours"]) == {"nDCG@10", "Recall@100", "MRR@10"}
    assert set(scores["pairs.csv"]) == {"Spearman", "Pearson"}
    # A task that the model fails at, or that is too easy, would tell nothing.
    assert 0.1 < scores["ours"]["nDCG@10"]["reference"] < 1
    assert 0.1 < scores["pairs.csv"]["Spearman"]["reference"] < 1
    for name, found in [*scores["ours"].items(), *scores["pairs.csv"].items()]:
        assert abs(found["difference"]) <= 1e-5, name
    assert result.stdout.count("+0.00000") + result.stdout.count("-0.00000") == 5


def test_vectors_and_baselines_stand_beside_the_scores(tiny_bundle, search_task, pairs_task):
    asked = (*both(search_task, pairs_task), "--precision", "fp32", "--baseline", "onnxruntime")
    table = run(tiny_bundle, *asked)
    assert table.exit_code == 0, table.output
    assert "onnxruntime is onnxruntime" in table.stdout
    assert "Baselines are not judged." in table.stdout
    for task in ("ours", "pairs.csv"):
        for figure in ("min cosine", "mean cosine", "error/distance"):
            assert re.search(rf"^{task} +{figure} +\S+ +\S+$", table.stdout, re.MULTILINE)
    document = json.loads(run(tiny_bundle, *asked, "--json", "-").stdout)
    ours, bare = document["sides"]
    assert (ours["ours"], bare["ours"], bare["asked"]) == (True, False, ["onnxruntime"])
    for system in (ours, bare):
        assert system["parity"]["ours"]["texts"] == 90
        assert system["parity"]["pairs.csv"]["min_cosine"] > 0.999999


def test_a_graph_that_pools_differently_fails(miswired_bundle, search_task, pairs_task):
    result = run(miswired_bundle, *both(search_task, pairs_task), "--reference", "transformers")
    assert result.exit_code == 1
    assert "FAIL: auto, fp32, ours: nDCG@10" in result.stdout
    assert "FAIL: auto, fp32, pairs.csv: Spearman" in result.stdout
    assert "the limit of fp32 is 0.0005" in result.stdout


def test_every_precision_that_runs_here_is_scored(full_tiny_bundle, pairs_task):
    expected = runnable_precisions(Bundle.open(full_tiny_bundle))
    assert "fp32" in expected
    result = run(full_tiny_bundle, "--task", pairs_task, "--json", "-")
    asked = [name for system in json.loads(result.stdout)["sides"] for name in system["asked"]]
    assert sorted(asked) == sorted(["auto", *expected])


def test_one_precision_can_be_asked_for(full_tiny_bundle, pairs_task):
    result = run(full_tiny_bundle, "--task", pairs_task, "--precision", "fp32", "--json", "-")
    assert result.exit_code == 0, result.output
    (system,) = json.loads(result.stdout)["sides"]
    assert system["asked"] == ["fp32"]
    assert system["precision"] == "fp32"


def test_a_precision_that_the_bundle_lacks_is_one_line(tiny_bundle, pairs_task):
    result = run(tiny_bundle, "--task", pairs_task, "--precision", "int4")
    assert result.exit_code == 1
    assert result.stderr.startswith("bge-bench: requested precision 'int4'")


class TestInstruction:
    def test_comes_before_questions_and_not_before_passages(self, search_task):
        asked = []

        class System:
            def encode(self, texts):
                asked.append(texts)
                return np.ones((len(texts), 1), dtype=np.float32)

        RetrievalTask("ours", search_task).measure(System(), lambda question: f"find: {question}")
        questions, passages = asked
        assert len(questions) == 30
        assert all(question.startswith("find: ") for question in questions)
        assert passages == PASSAGES

    def test_is_the_models_own_on_both_systems(self, full_tiny_bundle):
        bundle = Bundle.open(full_tiny_bundle)
        instruction = bundle.manifest.model.query_instruction
        assert instruction.startswith("Represent this sentence")
        questions = ["how long does ice keep air", "when is bread done"]
        vectors = []

        class Questions:
            name = "questions"

            def measure(self, system, instruct):
                vectors.append(system.encode([instruct(question) for question in questions]))
                return {}

        checkpoint = Path(bundle.manifest.provenance.source)
        precisions = ["fp32"]
        measure_retrieval(
            bundle, checkpoint, [Questions()], precisions=precisions, step=lambda _: None
        )
        model = FlagModel(
            str(full_tiny_bundle), query_instruction_for_retrieval=instruction, use_fp16=False
        )
        assert len(vectors) == 2
        for found in vectors:
            assert np.abs(found - model.encode_queries(questions)).max() < 1e-5
            assert np.abs(found - model.encode(questions)).max() > 1e-2


class TestLimits:
    reference = np.array([1.0, 0.5] * 500)

    def difference(self, changes):
        ours = self.reference.copy()
        for number, change in enumerate(changes):
            ours[number] += change
        return Difference.between(ours, self.reference)

    def test_fp32_has_none_to_spare_for_chance(self):
        assert self.difference([0.1, -0.1]).within(SCORE_LIMITS["fp32"])
        assert not self.difference([-0.5, -0.5]).within(SCORE_LIMITS["fp32"])

    def test_16_bit_may_swap_passages_both_ways(self):
        mixed = self.difference([0.5, 0.4, 0.37, 0.3, 0.2, 0.1, -0.3, -0.2, -0.1, -0.05])
        assert mixed.difference > SCORE_LIMITS["bf16"].difference
        assert mixed.within(SCORE_LIMITS["bf16"])
        assert (mixed.better, mixed.worse) == (6, 4)

    def test_16_bit_may_not_lose_steadily(self):
        assert not self.difference([-0.1] * 30).within(SCORE_LIMITS["bf16"])

    def test_int8_may_lose_half_a_point(self):
        assert self.difference([-0.1] * 40).within(SCORE_LIMITS["int8"])
        assert not self.difference([-0.1] * 100).within(SCORE_LIMITS["int8"])

    def test_a_score_that_is_no_number_fails(self):
        assert not self.difference([np.nan]).within(
            ScoreLimit(difference=1, standard_errors=0, reason="")
        )

    def test_a_score_that_is_one_value_has_no_chance(self):
        one = Difference.between(np.array([0.8]), np.array([0.81]))
        assert (one.standard_error, one.better, one.worse) == (0, 0, 0)
        assert one.difference == pytest.approx(-0.01)

    def test_each_has_a_tolerance_of_vectors_too(self):
        assert set(SCORE_LIMITS) <= set(TOLERANCES)

    def test_a_precision_without_one_is_not_judged_and_says_so(self):
        scores = {"task": {"nDCG@10": self.difference([-0.5] * 100)}}
        system = SystemScores(precision="int4", in_force="somewhere", asked=["int4"], scores=scores)
        result = RetrievalResult(reference="theirs", reference_in_force="", systems=(system,))
        assert result.passed
        assert "int4 has no limit, and is not judged." in retrieval_table(result)
        assert "(0/100)" in retrieval_table(result)


class TestTasks:
    def test_that_are_neither_known_nor_a_path_are_refused_with_those_known(self, tmp_path):
        with pytest.raises(BenchError, match="neither a path nor one of xquad-en"):
            open_task("nothing", tmp_path)

    def test_that_are_known_must_be_what_was_published(self, tmp_path, search_task):
        shutil.copytree(search_task, tmp_path / "xquad" / "en")
        with pytest.raises(BenchError, match=r"xquad-en is not in .* as it was published"):
            open_task("xquad-en", tmp_path)

    def test_of_one_name_are_refused(self, tiny_bundle, tmp_path, pairs_task):
        other = shutil.copy(pairs_task, tmp_path / "pairs.csv")
        result = run(tiny_bundle, "--task", pairs_task, "--task", other)
        assert result.exit_code == 1
        assert "two tasks are called the same" in result.stderr


def test_m3s_dense_vectors_are_scored(tiny_m3_bundle, search_task):
    result = run(tiny_m3_bundle, "--task", search_task, "--precision", "fp32", "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sides"][0]["scores"]["ours"]["nDCG@10"]["reference"] > 0.1


def test_decoders_are_scored_against_flagembedding_alone(tmp_path, search_task):
    bundle = export_decoder(write_tiny_decoder(tmp_path / "tiny"), tmp_path / "bundle")
    asked = (bundle, "--task", search_task, "--precision", "fp32")
    result = run(*asked)
    assert result.exit_code == 0, result.output
    assert "+0.00000" in result.stdout
    refused = run(*asked, "--reference", "transformers")
    assert refused.exit_code == 1
    assert "decoder-only-base with flagembedding" in refused.stderr


def test_decoders_that_put_examples_before_questions_are_refused(bundle_copy, pairs_task):
    manifest = json.loads((bundle_copy / "bge.json").read_text())
    manifest["model"]["model_class"] = "decoder-only-icl"
    (bundle_copy / "bge.json").write_text(json.dumps(manifest))
    result = run(bundle_copy, "--task", pairs_task)
    assert result.exit_code == 1
    assert "is of class decoder-only-icl, which cannot be compared" in result.stderr


@pytest.mark.usefixtures("made_once")
def test_scores_of_a_search_before_and_after_reranking(tiny_bundle, search_task, tmp_path):
    result = run(
        tiny_bundle, "--task", search_task, "--precision", "fp32", "--top", 5, "--questions", 10,
        "--rerank", reranker_bundle(), "--rerank-checkpoint", reranker_checkpoint(),
        "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "before" in result.output
    document = json.loads((tmp_path / "scores.json").read_text())
    (task,) = document["tasks"]
    assert (task["questions"], task["passages for each"]) == (10, 5)
    scores = document["sides"][0]["scores"]["ours"]["nDCG@10"]
    assert scores["difference"] == 0
    # Random weights know nothing, but they do change the order.
    assert scores["score"] != document["before"]["ours"]["nDCG@10"]


def test_a_reranker_puts_the_best_scored_first(tiny_bundle, search_task):
    class Reader:
        """Knows that a question is in its passage word for word."""

        def encode(self, pairs):
            return np.array([[question in passage] for question, passage in pairs], dtype="f4")

    system = open_system(
        SystemSpec(
            system=OURS, model=str(tiny_bundle), pooling="cls", max_length=512, batch_size=256
        )
    )
    task = RerankingTask(RetrievalTask("ours", search_task), system, str, depth=20)
    after = task.measure(Reader(), str)
    found = task.before["nDCG@10"] > 0  # among the first ten, of the twenty that are reranked
    assert found.any()
    assert (after["MRR@10"][found] == 1).all()
    assert after["nDCG@10"].mean() > task.before["nDCG@10"].mean()


def test_only_a_search_is_reranked(tiny_bundle, pairs_task, tmp_path):
    result = run(tiny_bundle, "--task", pairs_task, "--rerank", tmp_path)
    assert result.exit_code == 1
    assert "pairs.csv has no search to rerank" in result.stderr


def test_trained_weights_reach_their_published_score(minilm_bundle, shared_data):
    # MTEB's results for all-MiniLM-L6-v2 at 8b3219a, STSBenchmark: 0.8203247, 0.8274064.
    folder = str(minilm_bundle("mean"))
    system = open_system(
        SystemSpec(system=OURS, model=folder, pooling="mean", max_length=512, batch_size=256)
    )
    assert system.precision == "fp32"
    task = open_task("stsb-en", shared_data / "text")
    scores = task.measure(system, str)
    assert scores["Spearman"] == pytest.approx([0.8203247], abs=1e-6)
    assert scores["Pearson"] == pytest.approx([0.8274064], abs=1e-6)
