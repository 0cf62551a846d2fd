"""mteb scores a reranker's bundle as sentence-transformers' model of the same checkpoint."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_runtime import FlagReranker
from bge_runtime.errors import BundleError
from bge_runtime.integrations import mteb as module
from tests.helpers.page import code_blocks, run
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint
from tests.helpers.runtime import SAME_VALUE, assert_fp32_on_cpu
from tests.helpers.texts import NO_LIST

pytest.importorskip("mteb", reason="mteb is not installed")

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import CrossEncoderProtocol

from bge_runtime.integrations.mteb import BgeCrossEncoder

SAME_SCORE = 0.0005

PASSAGES = [
    "A heat pump moves warmth from the air outside into a building.",
    "Rye is a grain that stands cold winters and poor soil.",
    "Bees carry pollen between flowers and store honey for the winter.",
    "The moon pulls at the oceans, so that the water rises twice a day.",
    "Steel is iron with a little carbon, which makes it hard.",
    "In chess the bishop moves along diagonals.",
    "酵母把糖变成气体，使面团发起来。",
    "Züge auf Magnetschienen schweben über dem Gleis. " * 40,
]
QUERIES = {
    "Which cereal grows in cold places?": [1],
    "How do houses stay warm?": [0],
    "What do insects do for plants?": [2],
    "为什么海水会涨落？": [3],
    "How are alloys hardened?": [4, 0],
}


class LocalReranking(AbsTaskRetrieval):
    """Each query with the passages that a first stage has found for it."""

    metadata = TaskMetadata(
        name="LocalReranking",
        type="Reranking",
        main_score="map_at_1000",
        description="A task of these tests.",
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
    )

    def load_data(self, *args, **kwargs):
        texts = list(QUERIES)
        corpus = [{"id": f"p{n}", "title": "", "text": text} for n, text in enumerate(PASSAGES)]
        queries = [{"id": f"q{n}", "text": text} for n, text in enumerate(texts)]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": {
                f"q{n}": {f"p{found}": 1 for found in QUERIES[text]} for n, text in enumerate(texts)
            },
            "top_ranked": {f"q{n}": [f"p{i}" for i in range(len(PASSAGES))] for n in range(5)},
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


@pytest.fixture(scope="module")
def bundle(made_once) -> Path:
    return reranker_bundle("xlm-roberta")


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> BgeCrossEncoder:
    """Shared: leave its attributes alone."""
    return BgeCrossEncoder(str(bundle))


def evaluate(model, cache=None) -> dict[str, float]:
    """Return all numeric scores of the task."""
    with quiet():
        result = mteb.evaluate(model, LocalReranking(), cache=cache, show_progress_bar=False)
    assert not result.exceptions
    (found,) = result.task_results[0].scores["test"]
    return {name: value for name, value in found.items() if isinstance(value, float | int)}


def predict(encoder: BgeCrossEncoder, pairs: list[tuple[str, str]], **options) -> np.ndarray:
    """Score pairs in two batches."""
    sides = [
        [{"text": [pair[side] for pair in part]} for part in (pairs[:3], pairs[3:])]
        for side in (0, 1)
    ]
    return encoder.predict(
        *sides,
        task_metadata=LocalReranking.metadata,
        hf_split="test",
        hf_subset="default",
        **options,
    )


PAIRS = [(query, passage) for query in QUERIES for passage in PASSAGES]


def test_scores_are_sentence_transformers_own(encoder: BgeCrossEncoder, tmp_path: Path):
    with quiet():
        from sentence_transformers import CrossEncoder

        theirs = CrossEncoder(str(reranker_checkpoint("xlm-roberta")), device="cpu")
    assert isinstance(encoder, CrossEncoderProtocol)
    assert_fp32_on_cpu(encoder.model)
    expected, found = evaluate(theirs), evaluate(encoder)
    assert "main_score" in found
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=SAME_SCORE, nan_ok=True), name
    np.testing.assert_allclose(
        predict(encoder, PAIRS), theirs.predict(PAIRS), rtol=0, atol=SAME_VALUE
    )
    # A comparison that notices other scores: some metrics depend on more than the order.
    logits = evaluate(BgeCrossEncoder(str(encoder.model.bundle.path), normalize=False))
    assert any(abs(logits[name] - value) > SAME_SCORE for name, value in expected.items())


def test_scores_are_flag_embeddings(encoder: BgeCrossEncoder):
    with quiet():
        from FlagEmbedding import FlagReranker as Theirs

        theirs = Theirs(str(reranker_checkpoint("xlm-roberta")), use_fp16=False, devices="cpu")
        expected = theirs.compute_score(PAIRS, normalize=True)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(predict(encoder, PAIRS), expected, rtol=0, atol=SAME_VALUE)


@pytest.mark.parametrize("window", [1, 5, 8192])
def test_pairs_are_scored_in_windows(
    encoder: BgeCrossEncoder, window: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_WINDOW", window)
    expected = encoder.model.compute_score(PAIRS)
    np.testing.assert_allclose(
        predict(encoder, PAIRS, batch_size=4), expected, rtol=0, atol=SAME_VALUE
    )
    assert predict(encoder, []).shape == (0,)


def test_options_reach_the_model(bundle: Path, made_once, capsys):
    encoder = BgeCrossEncoder(
        str(bundle), max_length=16, normalize=False, model_kwargs={"batch_size": 7}
    )
    assert encoder.model.batch_size == 7
    expected = FlagReranker(str(bundle)).compute_score(PAIRS, max_length=16)
    found = predict(encoder, PAIRS, show_progress_bar=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME_VALUE)
    assert "scoring" in capsys.readouterr().err
    predict(encoder, PAIRS, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    long = BgeCrossEncoder(str(reranker_bundle("long xlm-roberta")))
    assert long.model.max_length == long.mteb_model_meta.max_tokens == 1024


def test_the_metadata_describes_the_run(encoder: BgeCrossEncoder):
    meta = encoder.mteb_model_meta
    assert meta.name == f"bge-runtime/{encoder.model.name}"
    assert meta.is_cross_encoder
    assert (meta.embed_dim, meta.max_tokens, meta.framework) == (None, 512, ["ONNX"])
    assert meta.experiment_kwargs["precision"] == encoder.model.engine.info.precision == "fp32"
    assert meta.experiment_kwargs["normalize"]


def test_results_are_stored_separately_by_settings(bundle: Path, tmp_path: Path):
    cache = mteb.ResultCache(tmp_path)
    encoder = BgeCrossEncoder(str(bundle))
    computed = evaluate(encoder, cache)
    encoder.model = None  # so that only what is filed can be had
    assert evaluate(encoder, cache)["main_score"] == pytest.approx(computed["main_score"], abs=1e-5)
    other = BgeCrossEncoder(str(bundle), normalize=False)
    other.model = None
    with pytest.raises(AttributeError):
        evaluate(other, cache)


def test_an_embedder_is_refused_by_name(tiny_bundle: Path):
    with pytest.raises(BundleError, match=r"no reranker\. Open it with FlagModel"):
        BgeCrossEncoder(str(tiny_bundle))


def test_anything_but_batches_of_texts_is_rejected(encoder: BgeCrossEncoder):
    def score(queries, documents):
        return encoder.predict(
            queries,
            documents,
            task_metadata=LocalReranking.metadata,
            hf_split="test",
            hf_subset="default",
        )

    good = [{"text": ["one", "two"]}]
    assert score(good, good).shape == (2,)
    for wrong in (["one"], [["one"]], [{"body": ["one"]}]):
        with pytest.raises(TypeError, match=r"inputs1\[0\] must be a batch of mteb with"):
            score(wrong, good)
        with pytest.raises(TypeError, match=r"inputs2\[0\] must be a batch of mteb with"):
            score(good, wrong)
    for make, message in NO_LIST.values():
        with pytest.raises(TypeError, match=rf"inputs1\[0\]\['text'\] must be .*, not {message}"):
            score([{"text": make()}], good)
    for fewer in ([], [{"text": ["one"]}]):
        with pytest.raises(ValueError, match="shorter"):
            score(good, fewer)


def test_the_example_of_the_page_scores(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    default = inspect.signature(mteb.evaluate).parameters["cache"].default
    monkeypatch.setattr(default, "cache_path", tmp_path)
    code = code_blocks()["Rerankers in mteb"]
    assert code.count('mteb.get_task("AskUbuntuDupQuestions")') == 1  # which is on the hub
    code = code.replace('mteb.get_task("AskUbuntuDupQuestions")', "task")
    run(code, bundle, task=LocalReranking())
    assert json.loads(capsys.readouterr().out) == pytest.approx(
        evaluate(BgeCrossEncoder(str(bundle)))["main_score"]
    )
