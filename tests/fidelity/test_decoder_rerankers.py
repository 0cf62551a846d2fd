"""Decoders that rerank against FlagEmbedding's class, which puts prompts together by itself.

Tiny models with seeded weights, Gemma's and a fine-tuned Qwen3 whose tokenizer has no
beginning-of-sequence token, over the pairs of the parity gate and real paragraphs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bge_bench.systems.base import quiet
from bge_export.parity_pairs import PARITY_PAIRS
from bge_runtime import FlagLLMReranker
from bge_runtime.encoding import PromptTokenizer
from tests.helpers.decoder_rerankers import NAMES, asked_by_flag_embedding
from tests.helpers.flag_embedding import real_texts

TOLERANCE = 1e-4
"""Largest difference of logits in fp32, for which a drop-in replacement is taken."""

QUERY = "How many people live in the city?"
PAIRS = [
    *PARITY_PAIRS[::2],
    ("same", "same"),
    ("\n newline first", " \n spaces around \n"),
    ("<bos> <eos> <|im_start|>", "<pad> in a passage"),
    ("a question of many words " * 200, "an answer of many words " * 300),
    *((QUERY, text) for text in real_texts(sentences=1, paragraphs=2)),
]
FORMATS = {
    "query_instruction_for_rerank": "Frage: ",
    "query_instruction_format": "{}\\n{}",
    "passage_instruction_for_rerank": "Absatz: ",
    "passage_instruction_format": "{}» {}",
    "prompt": "Does B answer A? Yes or No.",
}


@pytest.fixture(scope="module", params=list(NAMES))
def folder(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> Path:
    del made_once  # it keeps what is made
    return asked_by_flag_embedding(request.param)


def theirs(folder: Path, **options: object) -> np.ndarray:
    with quiet():
        from FlagEmbedding import FlagLLMReranker as Upstream

        model = Upstream(str(folder / "checkpoint"), devices="cpu", batch_size=16, **options)
        return np.array(model.compute_score(PAIRS))


def ours(folder: Path, **options: object) -> np.ndarray:
    return np.array(opened(folder, **options).compute_score(PAIRS))


def opened(folder: Path, **options: object) -> FlagLLMReranker:
    model = FlagLLMReranker(str(folder / "bundle"), engine="onnxruntime", **options)
    info = model.engine.info
    assert (info.precision, info.provider) == ("fp32", "CPUExecutionProvider")
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"max_length": 60, "query_max_length": 20}, FORMATS],
    ids=["defaults", "lengths", "formats"],
)
def test_scores_are_flagembeddings(folder: Path, options: dict):
    expected, found = theirs(folder, **options), ours(folder, **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    apart = expected[:, None] - expected > TOLERANCE
    assert (found[:, None] > found)[apart].all()
    assert np.std(expected) > 1000 * TOLERANCE


def test_a_cut_on_the_wrong_side_and_swapped_texts_are_noticed(folder: Path, monkeypatch):
    pairs = [("which", "words " * 300 + "after these"), ("a b", "c")]
    model, encode = opened(folder, prefix_cache_mb=0), PromptTokenizer.encode
    # Those of FlagEmbedding, as above.
    expected = np.array(model.compute_score(pairs))

    def swapped(self, queries, passages, **options):
        return encode(self, passages, queries, **options)

    def cut_in_front(self, queries, passages, *, max_length, **options):
        rows = encode(self, queries, passages, max_length=1 << 20, **options)
        return [row[-max_length:] for row in rows]

    for spoilt in (swapped, cut_in_front):
        monkeypatch.setattr(PromptTokenizer, "encode", spoilt)
        assert np.abs(np.array(model.compute_score(pairs)) - expected).max() > 100 * TOLERANCE
