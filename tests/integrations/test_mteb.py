"""mteb runs on a bundle, and scores it as it scores sentence-transformers' model of the same."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_runtime import FlagModel
from tests.helpers.decoders import export_decoder, write_tiny_decoder
from tests.helpers.integrations import SAME_VECTOR
from tests.helpers.page import code_blocks, run
from tests.helpers.runtime import assert_fp32_on_cpu, edit_manifest
from tests.helpers.texts import NO_LIST, NO_TEXT

pytest.importorskip("mteb", reason="mteb is not installed")

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from bge_runtime.integrations.mteb import BgeEncoder

SAME_SCORE = 0.0005

PASSAGES = {
    "heat": "A heat pump moves warmth from the air outside into a building.",
    "rye": "Rye is a grain that stands cold winters and poor soil.",
    "bees": "Bees carry pollen between flowers and store honey for the winter.",
    "tides": "The moon pulls at the oceans, so that the water rises twice a day.",
    "steel": "Steel is iron with a little carbon, which makes it hard.",
    "chess": "In chess the bishop moves along diagonals.",
    "yeast": "Yeast turns sugar into gas, which lets the dough rise.",
    "rails": "Trains on magnetic rails float above the track.",
    "salt": "Salt draws water out of food and so keeps it from spoiling.",
    "owls": "Owls hunt at night and turn their heads almost all the way round.",
    "glass": "Glass is made by melting sand.",
    "piano": "A piano's hammers strike strings of steel.",
    "tea": "Green and black tea come from leaves of the same plant.",
    "snow": "No two crystals of snow look the same.",
    "copper": "Copper conducts electricity better than most metals.",
    "whales": "Whales breathe air and nurse their young.",
}

QUESTIONS = {
    "Which cereal grows in cold places?": ["rye"],
    "How do houses stay warm without burning gas?": ["heat"],
    "What do insects do for plants?": ["bees"],
    "Why does the sea go up and down?": ["tides"],
    "Which metals are used for wires and strings?": ["copper", "piano"],
    "How is bread made fluffy?": ["yeast"],
    "How was meat kept before there were refrigerators?": ["salt"],
    "Which birds are awake after sunset?": ["owls"],
    "What are windows made of?": ["glass"],
    "Are sea animals mammals?": ["whales"],
    "How are alloys hardened?": ["steel"],
    "What falls from clouds in winter?": ["snow"],
}

PAIRS = [
    ("A man plays the guitar.", "Someone plays an instrument.", 3.5),
    ("A man plays the guitar.", "A woman cuts onions.", 0.2),
    ("The train leaves at nine.", "The train departs at 9 o'clock.", 4.9),
    ("The train leaves at nine.", "The bus leaves at nine.", 2.6),
    ("Prices fell last month.", "Last month prices went down.", 4.8),
    ("Prices fell last month.", "Prices rose last month.", 2.4),
    ("A cat sleeps on the sofa.", "A cat is sleeping on a couch.", 4.9),
    ("A cat sleeps on the sofa.", "A dog barks at the door.", 1.2),
    ("It rains in Hamburg.", "The weather in Hamburg is wet.", 4.1),
    ("It rains in Hamburg.", "Parliament passed the law.", 0.0),
]


def metadata(name: str, kind: str, score: str, path: Path) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        type=kind,
        main_score=score,
        description="A task of these tests.",
        dataset={"path": str(path), "revision": "1"},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
    )


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory):
    """A retrieval task in files of JSON lines."""
    folder = tmp_path_factory.mktemp("retrieval")
    queries = {f"q{number}": text for number, text in enumerate(QUESTIONS)}
    rows = {
        "corpus": [{"id": name, "title": "", "text": text} for name, text in PASSAGES.items()],
        "queries": [{"id": name, "text": text} for name, text in queries.items()],
        "qrels": [{"id": name, "relevant": QUESTIONS[text]} for name, text in queries.items()],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")

    def read(name: str):
        return [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]

    class LocalRetrieval(AbsTaskRetrieval):
        metadata = metadata("LocalRetrieval", "Retrieval", "ndcg_at_10", folder)

        def load_data(self, *args, **kwargs):
            relevant = {row["id"]: dict.fromkeys(row["relevant"], 1) for row in read("qrels")}
            split = {
                "corpus": Dataset.from_list(read("corpus")),
                "queries": Dataset.from_list(read("queries")),
                "relevant_docs": relevant,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return LocalRetrieval


@pytest.fixture(scope="module")
def similarity(tmp_path_factory: pytest.TempPathFactory):
    """A task of semantic similarity in a file of JSON lines."""
    file = tmp_path_factory.mktemp("sts") / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)), "utf-8")

    class LocalSTS(AbsTaskSTS):
        metadata = metadata("LocalSTS", "STS", "cosine_spearman", file.parent)
        min_score, max_score = 0, 5

        def load_data(self, *args, **kwargs):
            rows = [json.loads(line) for line in file.open(encoding="utf-8")]
            columns = zip(("sentence1", "sentence2", "score"), zip(*rows, strict=True), strict=True)
            self.dataset = {"test": Dataset.from_dict({name: list(c) for name, c in columns})}
            self.data_loaded = True

    return LocalSTS


def scores(model, task) -> dict[str, float]:
    """Return all numeric scores of a task."""
    with quiet():
        result = mteb.evaluate(model, task(), cache=None, show_progress_bar=False)
    assert not result.exceptions
    (found,) = result.task_results[0].scores["test"]
    return {name: value for name, value in found.items() if isinstance(value, float | int)}


def sentence_transformer(folder: Path):
    with quiet():
        from sentence_transformers import SentenceTransformer
    return SentenceTransformer(str(folder), device="cpu")


def assert_same_scores(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    assert "main_score" in ours
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=SAME_SCORE, nan_ok=True), name


def test_scores_are_sentence_transformers_own(
    minilm_checkpoint: Path, minilm_bundle, retrieval, similarity
):
    theirs = sentence_transformer(minilm_checkpoint)
    ours = BgeEncoder(str(minilm_bundle("mean")))
    broken = BgeEncoder(str(minilm_bundle("cls")))
    assert_fp32_on_cpu(ours.model)
    for task in (retrieval, similarity):
        expected = scores(theirs, task)
        assert_same_scores(scores(ours, task), expected)
        assert expected["main_score"] > 0.7  # the task can be solved
        with pytest.raises(AssertionError):  # a model that pools wrongly is detected
            assert_same_scores(scores(broken, task), expected)


def test_queries_get_the_instruction_as_in_sentence_transformers(
    published: Path, full_tiny_bundle: Path, retrieval, similarity, tmp_path: Path
):
    # The bundle of the same weights, whose authors recommend an instruction.
    folder = Path(shutil.copytree(published, tmp_path / "bge-small-en-v1.5"))
    prompts = "config_sentence_transformers.json"
    shutil.copy(full_tiny_bundle / prompts, folder / prompts)
    theirs = sentence_transformer(folder)
    assert theirs.prompts["query"]
    ours = BgeEncoder(str(full_tiny_bundle))
    without = BgeEncoder(str(full_tiny_bundle), query_instruction="")
    expected = scores(theirs, retrieval)
    assert_same_scores(scores(ours, retrieval), expected)
    with pytest.raises(AssertionError):
        assert_same_scores(scores(without, retrieval), expected)
    # Neither side of a pair is a query.
    assert_same_scores(scores(ours, similarity), scores(theirs, similarity))


def encode(encoder: BgeEncoder, texts: list[str], task, prompt_type, **options):
    batches = [{"text": texts[:1]}, {"text": texts[1:]}]
    return encoder.encode(
        batches,
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=prompt_type,
        **options,
    )


def test_a_language_model_gets_each_tasks_own_instruction(tmp_path: Path, retrieval, similarity):
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint")
    encoder = BgeEncoder(str(export_decoder(checkpoint, tmp_path / "bundle")))
    plain = BgeEncoder(str(tmp_path / "bundle"), query_instruction="")
    own = BgeEncoder(str(tmp_path / "bundle"), query_instruction="Find it.")
    texts = ["one text", "another one"]

    def instructed(instruction):
        encoder.model.query_instruction_for_retrieval = instruction
        return encoder.model.encode_queries(texts)

    for task, prompt_type, one, expected in (
        (retrieval, PromptType.query, encoder, instructed(AbsTaskRetrieval.abstask_prompt)),
        (similarity, None, encoder, instructed(AbsTaskSTS.abstask_prompt)),
        (retrieval, PromptType.document, encoder, plain.model.encode(texts)),
        (retrieval, PromptType.query, plain, plain.model.encode(texts)),
        (retrieval, PromptType.query, own, instructed("Find it.")),
        (similarity, None, own, plain.model.encode(texts)),
    ):
        vectors = encode(one, texts, task, prompt_type)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=SAME_VECTOR)
    assert np.abs(instructed("Find it.") - plain.model.encode(texts)).max() > 0.01


def test_dense_vectors_of_m3_are_scored(tiny_m3_bundle: Path, similarity):
    assert "cosine_spearman" in scores(BgeEncoder(str(tiny_m3_bundle)), similarity)


def test_the_metadata_describes_the_run(full_tiny_bundle: Path):
    encoder = BgeEncoder(str(full_tiny_bundle), max_length=64, model_kwargs={"truncate_dim": 16})
    meta = encoder.mteb_model_meta
    assert meta.name == "bge-runtime/bge-small-en-v1.5"
    assert meta.adapted_from == "BAAI/bge-small-en-v1.5"
    assert (meta.embed_dim, meta.max_tokens, meta.framework) == (16, 64, ["ONNX"])
    assert meta.use_instructions
    assert meta.experiment_kwargs["precision"] == "fp32"
    assert encoder.model.engine.info.engine == meta.experiment_kwargs["engine"] == "onnxruntime"


def test_results_are_stored_separately_by_bundle_and_engine(
    full_tiny_bundle: Path, similarity, tmp_path: Path
):
    cache = mteb.ResultCache(tmp_path / "cache")
    other = Path(shutil.copytree(full_tiny_bundle, tmp_path / "other"))

    def mark(data):
        data["provenance"]["source"] = "another"

    edit_manifest(other, mark)

    def evaluate(encoder):
        with quiet():
            result = mteb.evaluate(encoder, similarity(), cache=cache, show_progress_bar=False)
        return result.task_results[0].scores["test"][0]["main_score"]

    encoder = BgeEncoder(str(full_tiny_bundle))
    computed = evaluate(encoder)
    encoder.model = None  # so that only what is filed can be had
    assert evaluate(encoder) == pytest.approx(computed, abs=1e-5)
    for another in (
        BgeEncoder(str(full_tiny_bundle), query_instruction=""),
        BgeEncoder(str(full_tiny_bundle), model_kwargs={"truncate_dim": 16}),
        BgeEncoder(str(other)),
    ):
        another.model = None
        with pytest.raises(AttributeError):
            evaluate(another)


def test_options_reach_the_model(full_tiny_bundle: Path, similarity, capsys):
    fast = BgeEncoder(str(full_tiny_bundle), model_kwargs={"use_fp16": True})
    assert fast.model.engine.info == FlagModel(str(full_tiny_bundle)).engine.info
    encode(fast, ["one", "two"], similarity, None, show_progress_bar=True, batch_size=1)
    assert "2/2" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"precision='int8'.* model_kwargs"):
        encode(fast, ["one"], similarity, None, precision="int8")


def test_the_example_of_the_page_scores(
    minilm_bundle, retrieval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    default = inspect.signature(mteb.evaluate).parameters["cache"].default
    monkeypatch.setattr(default, "cache_path", tmp_path)
    code = code_blocks()["mteb"]
    assert code.count('mteb.get_task("NFCorpus")') == 1  # which is on the hub
    run(code.replace('mteb.get_task("NFCorpus")', "task"), minilm_bundle("mean"), task=retrieval())
    assert float(capsys.readouterr().out) > 0.7


def test_anything_but_a_batch_of_texts_is_rejected(tiny_bundle: Path, tmp_path: Path):
    encoder = BgeEncoder(str(tiny_bundle))
    task = metadata("LocalSTS", "STS", "cosine_spearman", tmp_path)

    def encode(inputs):
        return encoder.encode(inputs, task_metadata=task, hf_split="test", hf_subset="default")

    assert encode([{"text": ["one"]}]).shape == (1, 48)
    for inputs in (["one"], {"text": ["one"]}, [["one"]], [{"body": ["one"]}]):
        with pytest.raises(TypeError, match=r"inputs\[0\] must be a batch of mteb with"):
            encode(inputs)
    for make, message in [*NO_LIST.values(), (lambda: "one", "a string")]:
        with pytest.raises(TypeError, match=rf"inputs\[1\]\['text'\] must be .*, not {message}"):
            encode([{"text": ["one"]}, {"text": make()}])
    for make, message in NO_TEXT.values():
        with pytest.raises(TypeError, match=rf"'text'\]\[1\] must be a string, not (?:{message})"):
            encode([{"text": make()}])
