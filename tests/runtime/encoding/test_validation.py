"""Whatever takes texts takes strings only, and says what else it was given, and where."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagICLModel, FlagLLMModel, FlagModel
from bge_runtime.encoding.validation import as_pairs, as_text, as_text_list, as_texts
from bge_runtime.m3.lexical import LexicalWeights
from bge_runtime.stores import to_milvus_sparse, to_qdrant_multivector
from tests.helpers.runtime import assert_same
from tests.helpers.texts import LISTS, NO_LIST, NO_TEXT, WORDS, Loud, Named, pandas


@pytest.mark.parametrize("make", LISTS.values(), ids=LISTS)
def test_a_list_of_texts_becomes_plain_strings(make):
    for texts in (as_texts(make(), name="texts")[0], as_text_list(make(), name="texts")):
        assert texts == WORDS
        assert set(map(type, texts)) == {str}


def test_a_single_text_is_one_text():
    for text in ("one", np.str_("one"), Named.ONE, Loud("one")):
        assert as_texts(text, name="texts") == (["one"], True)
        assert type(as_text(text, name="text")) is str
    with pytest.raises(TypeError, match=r"texts must be a list of strings, not a string. Pass \["):
        as_text_list("one", name="texts")
    with pytest.raises(TypeError, match="text must be a string, not list"):
        as_text(["one"], name="text")


@pytest.mark.parametrize(("make", "message"), NO_LIST.values(), ids=NO_LIST)
def test_what_is_no_list_of_texts_is_named(make, message):
    with pytest.raises(TypeError, match=f"^texts must be a list of strings, not {message}"):
        as_text_list(make(), name="texts")
    with pytest.raises(TypeError, match=r"^texts must be a string or a list of strings, not .+"):
        as_texts(make(), name="texts")


@pytest.mark.parametrize(("make", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_no_text_within_a_list_is_named_by_its_place(make, message):
    for check in (as_texts, as_text_list):
        with pytest.raises(TypeError, match=rf"^texts\[1\] must be a string, not (?:{message})"):
            check(make(), name="texts")


# -- Everything that takes texts ------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tiny_m3_bundle: Path, decoder):
    """One of each class."""
    return {
        "FlagModel": FlagModel(str(tiny_bundle), use_fp16=False),
        "BGEM3FlagModel": BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False),
        "FlagLLMModel": FlagLLMModel(decoder.bundle, use_fp16=False),
        "FlagICLModel": FlagICLModel(decoder.bundle, use_fp16=False),
    }


ENCODES = ["encode", "encode_queries", "encode_corpus", "encode_single_device"]
TAKE_TEXTS = [
    *((name, method) for name in ("FlagModel", "BGEM3FlagModel") for method in ENCODES),
    *((name, method) for name in ("FlagLLMModel", "FlagICLModel") for method in ENCODES),
    ("FlagICLModel", "encode_queries_single_device"),
]


@pytest.mark.parametrize(("name", "method"), TAKE_TEXTS, ids="-".join)
def test_each_class_refuses_what_is_no_text(models, name, method):
    encode = getattr(models[name], method)
    for make, message in NO_LIST.values():
        with pytest.raises(
            TypeError, match=f"must be a string or a list of strings, not {message}"
        ):
            encode(make())
    for make, message in NO_TEXT.values():
        with pytest.raises(TypeError, match=rf"\w+\[1\] must be a string, not (?:{message})"):
            encode(make())
    with pytest.raises(TypeError):
        models[name].encode_multi_process({"one": 1}, None)


def test_a_column_gives_what_a_list_gives(models):
    model = models["FlagModel"]
    for make in LISTS.values():
        assert_same(model.encode(make()), model.encode(WORDS), tolerance=0)


def test_an_instruction_is_put_before_the_text_itself(models):
    # ``format`` of an enum's member gives its name, of other classes whatever they like.
    options = {"instruction": "Find: ", "instruction_format": "{}{}"}
    model = models["FlagModel"]
    expected = model.encode(["Find: one", "Find: two"])
    for texts in (list(Named), [Loud("one"), "two"], [np.str_("one"), "two"]):
        assert_same(model.encode(texts, **options), expected, tolerance=0)


@pytest.mark.parametrize("wrong", [b"Find: ", 5, ["Find: "], Path("Find: ")], ids=repr)
@pytest.mark.parametrize("name", ["FlagModel", "BGEM3FlagModel", "FlagLLMModel"])
def test_an_instruction_is_a_string(models, name, wrong):
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"instruction must be a string, not {kind}"):
        models[name].encode("text", instruction=wrong, instruction_format="{}{}")
    with pytest.raises(TypeError, match=f"needs an instruction_format, .* not {kind}"):
        models[name].encode("text", instruction="Find: ", instruction_format=wrong)


# -- Pairs ----------------------------------------------------------------------------------


def test_pairs_come_from_whatever_holds_them_in_order():
    pairs = [("one", "two"), ("three", "four")]
    for given in (
        pairs,
        [list(pair) for pair in pairs],
        iter(pairs),
        zip(["one", "three"], ["two", "four"], strict=True),
        dict(pairs).items(),
        np.array(pairs),
        [np.array(pair) for pair in pairs],
        [dict.fromkeys(pair).keys() for pair in pairs],
    ):
        assert as_pairs(given) == (pairs, False)
    assert (
        as_pairs(("one", "two")) == as_pairs(np.array(["one", "two"])) == ([("one", "two")], True)
    )
    table = pandas().DataFrame(pairs, columns=["query", "passage"])
    assert as_pairs(table.to_numpy()) == (pairs, False)
    assert as_pairs(zip(table["query"], table["passage"], strict=True)) == (pairs, False)


@pytest.mark.parametrize(("make", "message"), NO_LIST.values(), ids=NO_LIST)
def test_what_is_no_list_of_pairs_is_named(models, make, message):
    given = make()
    kind = re.escape(message.partition(".")[0].removesuffix("$"))
    if not isinstance(given, np.ndarray) or given.ndim == 0:
        with pytest.raises(
            TypeError, match=rf"^sentence_pairs must be .* list of pairs, not {kind}"
        ):
            models["BGEM3FlagModel"].compute_score(given)
    with pytest.raises(TypeError, match=rf"^sentence_pairs\[1\] must be a pair .*, not {kind}"):
        models["BGEM3FlagModel"].compute_score_single_device([("one", "two"), given])


@pytest.mark.parametrize(("make", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_no_text_within_a_pair_is_named(make, message):
    kind = message.partition(". ")[0].removesuffix("$")
    with pytest.raises(TypeError, match=rf"^sentence_pairs\[1\] must hold strings, not (?:{kind})"):
        as_pairs([("one", "two"), make()])


# -- Weights and examples -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", "must be a dictionary or a list of dictionaries, not str"),
        (None, "must be a dictionary or a list of dictionaries, not None"),
        ({"5"}, "must be a dictionary or a list of dictionaries, not set"),
        (["5"], r"lexical_weights\[0\] must be a dictionary, not str"),
        ([{"5": 1.0}, None], r"lexical_weights\[1\] must be a dictionary, not None"),
        ([[("5", 1.0)]], r"lexical_weights\[0\] must be a dictionary, not list"),
    ],
    ids=str,
)
def test_what_is_no_dictionary_of_weights_is_named(models, wrong, message):
    for take in (
        models["BGEM3FlagModel"].convert_id_to_token,
        to_milvus_sparse,
        LexicalWeights.from_dicts,
    ):
        with pytest.raises(TypeError, match=message):
            take(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("text", "must be an array or a list of arrays, not str"),
        (None, "must be an array or a list of arrays, not None"),
        (np.ones(3), r"colbert_vecs\[0\] must be an array of shape .*, not float64"),
        ([np.ones((2, 3)), np.ones(3)], r"colbert_vecs\[1\] .* not ndarray of shape \(3,\)"),
        ([np.ones((2, 3)), "text"], r"colbert_vecs\[1\] .* not str"),
    ],
    ids=str,
)
def test_what_is_no_array_of_vectors_is_named(wrong, message):
    with pytest.raises(TypeError, match=message):
        to_qdrant_multivector(wrong)


@pytest.mark.parametrize("wrong", ["text", {"query": "a"}, b"text", 5], ids=repr)
def test_examples_are_a_list(models, wrong):
    with pytest.raises(TypeError, match="examples_for_task must be a list of dictionaries, but is"):
        models["FlagICLModel"].set_examples(wrong)
