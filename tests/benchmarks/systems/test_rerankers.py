"""Each reranker scores the same pairs, cut at the same place, or a comparison means nothing."""

from functools import partial

import numpy as np
import pytest

from bge_bench.datasets.corpus import paragraphs
from bge_bench.systems.base import (
    BASELINES,
    FROM_CHECKPOINT,
    OURS,
    SystemSpec,
    as_passages,
    open_system,
)
from bge_bench.systems.outputs import compare_outputs
from bge_runtime.sources import RERANKER_DECODER, RERANKER_ENCODER
from tests.helpers.decoder_rerankers import NAMES, export_tiny_reranker
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint

PAIRS = as_passages(["", "a", "naïve café, 样例数据", *paragraphs(9)])
"""Passages that are empty, short and unlike in length; the last ones are longer than 64 tokens."""

pytestmark = pytest.mark.usefixtures("made_once")


def open_reranker(name, family, **options):
    folder = reranker_checkpoint(family) if name in FROM_CHECKPOINT else reranker_bundle(family)
    given = {"batch_size": 5, "precision": "fp32", "max_length": 64} | options
    return open_system(
        SystemSpec(
            system=name, model=str(folder), pooling="cls", threads=1,
            model_class=RERANKER_ENCODER, **given,
        )
    )  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "xlm-roberta"])
def exact(request):
    """A family, which reads token types or does not, and PyTorch's scores, one pair at a time."""
    return request.param, open_reranker("transformers", request.param, batch_size=1).encode(PAIRS)


def failures(scores, expected, precision):
    return compare_outputs(scores, expected, reranks=True).failures(precision)


@pytest.mark.parametrize("name", [OURS, *BASELINES])
def test_a_reranker_computes_pytorchs_scores_and_says_with_what(name, exact):
    family, expected = exact
    system = open_reranker(name, family)
    assert system.precision == ("bf16" if name.endswith("bf16") else "fp32")
    assert "1 threads" in system.in_force
    if name != OURS:
        assert ", batches of 5" in system.in_force
        assert ("onnx/model.onnx" in system.in_force) == (name not in FROM_CHECKPOINT)
    scores = system.encode(PAIRS)
    assert (scores.dtype, scores.shape) == (np.float32, (len(PAIRS), 1))
    assert not failures(scores, expected, system.precision)


def test_a_system_scores_pairs_of_several_queries_in_their_order():
    pairs = [*PAIRS, *[(passage[:40], query) for query, passage in PAIRS[1:]]]
    expected = open_reranker("transformers", "bert", batch_size=1).encode(pairs)
    for name in (OURS, "flagembedding", "fastembed"):
        assert not failures(open_reranker(name, "bert").encode(pairs), expected, "fp32")


@pytest.mark.parametrize("wrong", ["swapped texts", "another length"])
def test_a_system_that_does_other_work_is_noticed(wrong):
    expected = open_reranker("onnxruntime", "bert").encode(PAIRS)
    pairs, length = PAIRS, 64
    if wrong == "swapped texts":
        pairs = [(passage, query) for query, passage in PAIRS]
    else:
        length = 48
    scores = open_reranker("onnxruntime", "bert", max_length=length).encode(pairs)
    assert failures(scores, expected, "fp32")


@pytest.mark.parametrize(
    ("family", "name"),
    [("gemma", "flagembedding"), ("qwen3", "flagembedding"), ("qwen3", "transformers")],
)
def test_a_decoder_is_asked_as_its_authors_ask_it(family, name, made_once):
    root = made_once(
        f"asked-decoder-{family}", partial(export_tiny_reranker, name=family, targets=("cpu",))
    )
    folders = {OURS: root / "bundle", name: root / NAMES[family]}
    ours, theirs = (
        open_system(
            SystemSpec(
                system=system, model=str(folder), pooling="last_token", threads=1, max_length=256,
                batch_size=4, model_class=RERANKER_DECODER,
            )
        )
        for system, folder in folders.items()
    )  # fmt: skip
    assert (ours.precision, theirs.precision) == ("fp32", "fp32")
    assert not failures(ours.encode(PAIRS), theirs.encode(PAIRS), "fp32")
