"""Decoders that rerank: their prompt, what is computed once, and where pairs are cut."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from bge_runtime import FlagAutoReranker, FlagLLMReranker, FlagReranker
from bge_runtime.errors import BundleError
from bge_runtime.serving import create_app, open_served_model
from tests.helpers.decoder_rerankers import NAMES, export_tiny_reranker
from tests.helpers.rerankers import reranker_bundle as encoder_bundle

PAIRS = [
    ("what is a heat pump", "a heat pump moves warmth"),
    ("what is rye", "rye is a grain"),
    ("what is a heat pump", "rye is a grain"),
    ("", ""),
    ("why " * 300, "because"),
    ("why", "because " * 900),
]


@pytest.fixture(scope="module", params=list(NAMES))
def bundle(request, made_once):
    """The bundle of a tiny decoder that reranks."""
    make = partial(export_tiny_reranker, name=request.param)
    return str(made_once(f"tiny-asked-{request.param}", make) / "bundle")


def test_scores_do_not_depend_on_the_prefix_cache(bundle):
    cached, plain = FlagLLMReranker(bundle), FlagLLMReranker(bundle, prefix_cache_mb=0)
    assert cached.engine.info.precision == "fp32"
    query = "which of these long passages is about heat pumps and how they move warmth " * 2
    passages = [f"passage {number} about {number * 7}" for number in range(30)]
    pairs = [*PAIRS, *((query, passage) for passage in passages)]
    found = cached.compute_score(pairs)
    np.testing.assert_allclose(found, plain.compute_score(pairs), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        found, [cached.compute_score(pair)[0] for pair in pairs], rtol=0, atol=1e-5
    )
    assert cached.prefix_cache.stats.tokens_saved > 0
    assert plain.prefix_cache.stats.tokens_saved == 0
    ranked = cached.rerank(query, passages, 5)
    scores = found[len(PAIRS) :]
    assert [each.index for each in ranked] == sorted(range(30), key=lambda row: -scores[row])[:5]


def test_no_pair_is_longer_than_the_model_reads(bundle):
    model = FlagLLMReranker(bundle)
    limit = model.model_max_length
    for query, passage in (("q", "p " * 4000), ("q " * 4000, "p"), ("q " * 4000, "p " * 4000)):
        (row,) = model.pair_plan(query, max_length=limit).tokenize([passage])
        assert len(row) <= limit
    (score,) = model.compute_score(("q", "p " * 4000), max_length=limit)
    assert np.isfinite(score)


def test_a_served_decoder_has_its_own_prompt(bundle):
    served = open_served_model(bundle, precision="fp32")
    expected = FlagAutoReranker.from_finetuned(bundle).compute_score(PAIRS)
    assert served.compute_score(PAIRS) == expected
    asked = open_served_model(bundle, precision="fp32", query_instruction="Find: ")
    assert asked.query_instruction == "Find: "
    assert asked.compute_score(PAIRS) != expected


def test_an_instruction_changes_the_prompt(bundle):
    model = FlagLLMReranker(bundle)
    before = model.compute_score(PAIRS)
    model.query_instruction_for_rerank = "Is it true that: "
    assert model.query_instruction == "Is it true that: "
    assert model.compute_score(PAIRS) != before


def test_a_decoder_is_refused_by_the_class_for_encoders(bundle):
    with pytest.raises(BundleError, match="Open it with FlagLLMReranker"):
        FlagReranker(bundle)


def test_a_decoder_that_embeds_tells_how_one_that_reranks_is_opened(decoder):
    with pytest.raises(BundleError, match=r"do not tell whether it reranks.* FlagLLMReranker"):
        FlagAutoReranker.from_finetuned(decoder.bundle)


def test_a_long_query_leaves_room_for_its_passages(bundle):
    """Also where ``max_length`` counts the prompt, as Qwen3-Reranker's does."""
    plan = FlagLLMReranker(bundle).pair_plan("word " * 300, max_length=256)
    one, other = plan.tokenize(["the passage " * 50, "x"])
    assert len(one) > len(other)
    assert len(one) - len(other) > 20


def test_a_server_that_leaves_no_room_for_texts_does_not_start(made_once):
    del made_once
    model = FlagReranker(str(encoder_bundle("bert")))
    with pytest.raises(ValueError, match="max_length=3 leaves no room"):
        create_app({"r": model}, max_length=3)


def test_a_format_without_a_place_for_the_query_is_refused(bundle):
    model = FlagLLMReranker(bundle)
    model.query_instruction_format = "{}"
    with pytest.raises(ValueError, match="no place for query"):
        model.compute_score(PAIRS)
