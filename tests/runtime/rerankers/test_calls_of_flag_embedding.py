"""The calls of FlagEmbedding's examples of rerankers run as they are written."""

from __future__ import annotations

from functools import partial

import pytest

from bge_runtime import FlagAutoReranker, FlagLLMReranker, FlagReranker
from tests.helpers.decoder_rerankers import export_tiny_reranker
from tests.helpers.rerankers import reranker_bundle

PANDA = [
    ["what is panda?", "hi"],
    ["what is panda?", "The giant panda, also called panda bear or simply panda, is a bear."],
]


@pytest.fixture(scope="module")
def bundles(made_once):
    """Bundles by the names that FlagEmbedding's examples have."""
    decoder = made_once("tiny-asked-gemma", partial(export_tiny_reranker, name="gemma"))
    return {
        "bge-reranker-v2-m3": str(reranker_bundle("long xlm-roberta")),
        "bge-reranker-large": str(reranker_bundle("xlm-roberta")),
        "bge-reranker-v2-gemma": str(decoder / "bundle"),
    }


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (FlagReranker, "bge-reranker-v2-m3"),
        (FlagLLMReranker, "bge-reranker-v2-gemma"),
        (FlagAutoReranker.from_finetuned, "bge-reranker-large"),
        (FlagAutoReranker.from_finetuned, "bge-reranker-v2-gemma"),
    ],
)
def test_the_calls_of_flag_embedding_s_reranker_page_run(bundles, cls, name):
    """One pair, many pairs, ``normalize``: examples/inference/reranker/README.md."""
    with pytest.warns(UserWarning, match="no option 'passage_max_length'.* has no effect"):
        reranker = cls(
            bundles[name],
            query_max_length=256,
            passage_max_length=512,  # has no effect in FlagEmbedding either
            use_fp16=True,
            devices=["cpu"],
        )
    (score,) = reranker.compute_score(["query", "passage"])
    (share,) = reranker.compute_score(["query", "passage"], normalize=True)
    assert 0 < share < 1
    assert (share > 0.5) == (score > 0)
    scores = reranker.compute_score(PANDA)
    shares = reranker.compute_score(PANDA, normalize=True)
    assert (scores[0] > scores[1]) == (shares[0] > shares[1])
    assert all(type(each) is float for each in (*scores, *shares))


@pytest.mark.parametrize("cls", [FlagLLMReranker, FlagAutoReranker.from_finetuned])
def test_the_scripts_of_flag_embedding_run_on_two_devices(bundles, cls):
    """examples/inference/reranker/decoder_only: 400 pairs, instructions, two devices."""
    reranker = cls(
        bundles["bge-reranker-v2-gemma"],
        use_fp16=True,
        query_instruction_for_rerank="A: ",
        passage_instruction_for_rerank="B: ",
        devices=["cpu", "cpu"],
    )
    scores = reranker.compute_score(PANDA * 200)
    assert len(scores) == 400
    assert scores[0] != scores[1]
    assert scores[:2] == pytest.approx(scores[-2:], abs=1e-4)
