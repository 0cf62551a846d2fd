"""Input that cannot be scored is refused clearly, before anything is computed."""

from __future__ import annotations

import pytest

from bge_runtime import (
    BGEM3FlagModel,
    FlagAutoModel,
    FlagAutoReranker,
    FlagLLMReranker,
    FlagModel,
    FlagReranker,
)
from bge_runtime.errors import BundleError
from tests.helpers.rerankers import reranker_bundle


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        (None, TypeError, "a pair of strings or a list of pairs, not None"),
        ("a text", TypeError, "a pair of strings or a list of pairs, not str"),
        ([("query", None)], TypeError, r"sentence_pairs\[0\] must hold strings, not None"),
        ([("query", "passage"), ("query",)], ValueError, r"sentence_pairs\[1\] must be a pair"),
        ([("a", "b", "c")], ValueError, r"sentence_pairs\[0\] must be a pair"),
        ([None], TypeError, r"sentence_pairs\[0\] must be a pair of a query and a passage"),
        (["a", "b", "c"], ValueError, r"sentence_pairs\[0\] must be a pair"),
        ([[]], ValueError, r"sentence_pairs\[0\] must be a pair"),
        ([("q", "\ud800")], ValueError, r"sentence_pairs\[0\]\[1\] is not valid Unicode"),
        ({"q": "p"}, TypeError, "not dict"),
    ],
    ids=repr,
)
def test_what_is_no_pair_is_refused(reranker, pairs, error, message):
    with pytest.raises(error, match=message):
        reranker.compute_score(pairs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, ["p"]), TypeError, "query must be a string, not None"),
        ((["q"], ["p"]), TypeError, "query must be a string, not list"),
        (("q", None), TypeError, "passages must be a list of strings, not None"),
        (("q", "p"), TypeError, r"passages must be a list of strings, not a string. Pass \[text\]"),
        (("q", ["p", 7]), TypeError, r"passages\[1\] must be a string, not int"),
        (("q", ["p"], 0), ValueError, "top_k must be a whole number of at least 1"),
        (("\udc00", ["p"]), ValueError, "query is not valid Unicode"),
    ],
    ids=repr,
)
def test_what_cannot_be_ranked_is_refused(reranker, arguments, error, message):
    with pytest.raises(error, match=message):
        reranker.rerank(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1"),
        ({"max_length": 3}, "max_length=3 leaves no room for query and passage beside the [34] "),
        ({"query_max_length": -1}, "query_max_length must be a whole number of at least 1"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(reranker, options, message):
    with pytest.raises(ValueError, match=message):
        reranker.compute_score([("q", "p")], **options)


def test_a_length_that_the_model_cannot_read_is_cut_with_a_warning(reranker):
    limit = reranker.model_max_length
    with pytest.warns(UserWarning, match=f"longer texts are cut at {limit}"):
        (score,) = reranker.compute_score([("q", "p " * 2000)], max_length=limit + 1)
    assert score == reranker.compute_score([("q", "p " * 2000)], max_length=limit)[0]


@pytest.mark.parametrize("wrong", [FlagModel, BGEM3FlagModel, FlagAutoModel.from_finetuned])
def test_a_reranker_opened_as_an_embedder_names_the_right_class(made_once, wrong):
    del made_once
    with pytest.raises((BundleError, ValueError), match="FlagReranker"):
        wrong(str(reranker_bundle("bert")))


@pytest.mark.parametrize("wrong", [FlagReranker, FlagLLMReranker, FlagAutoReranker.from_finetuned])
def test_an_embedder_opened_as_a_reranker_names_the_right_class(tiny_bundle, wrong):
    with pytest.raises(BundleError, match=r"encoder-only-base.* Open it with FlagModel"):
        wrong(str(tiny_bundle))


def test_an_encoder_opened_as_a_decoder_names_the_right_class(made_once):
    del made_once
    with pytest.raises(BundleError, match="Open it with FlagReranker, or with FlagAutoReranker"):
        FlagLLMReranker(str(reranker_bundle("bert")))


@pytest.mark.parametrize("name", ["decoder-only-layerwise", "decoder-only-lightweight"])
def test_classes_with_code_in_the_checkpoint_are_refused(name):
    with pytest.raises(ValueError, match="whose layers are computed by code in its checkpoint"):
        FlagAutoReranker.from_finetuned("BAAI/some-reranker", model_class=name)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="known are encoder-only-base, decoder-only-base"):
        FlagAutoReranker.from_finetuned("BAAI/some-reranker", model_class="encoder-only-m3")


def test_the_auto_class_is_not_instantiated():
    with pytest.raises(EnvironmentError, match=r"FlagAutoReranker\.from_finetuned"):
        FlagAutoReranker()


def test_an_adapter_is_refused_with_what_to_do(made_once):
    del made_once
    with pytest.raises(ValueError, match="Merge it"):
        FlagLLMReranker(str(reranker_bundle("bert")), peft_path="adapter")


def test_unknown_arguments_are_kept_with_a_warning(made_once):
    del made_once
    with pytest.warns(UserWarning, match="has no option 'colour'"):
        model = FlagReranker(str(reranker_bundle("bert")), colour="red")
    assert model.colour == "red"


def test_texts_that_are_no_unicode_are_named(reranker):
    with pytest.raises(ValueError, match=r"passages\[1\] is not valid Unicode"):
        reranker.rerank("q", ["a", "b\ud800"])
    with pytest.raises(ValueError, match="query is not valid Unicode"):
        reranker.pair_plan("x\ud800")
