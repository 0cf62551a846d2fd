"""What all classes tell of their model, and what they say of an instruction that is too long."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagICLModel, FlagLLMModel, FlagModel
from tests.helpers.runtime import TEXTS, assert_same

CLASSES = [FlagModel, BGEM3FlagModel, FlagLLMModel, FlagICLModel]
LONG = "an instruction of many words " * 20


@pytest.fixture(scope="module")
def bundles(tiny_bundle, tiny_m3_bundle, decoder):
    return {
        FlagModel: str(tiny_bundle),
        BGEM3FlagModel: str(tiny_m3_bundle),
        FlagLLMModel: decoder.bundle,
        FlagICLModel: decoder.bundle,
    }


@pytest.mark.parametrize("cls", CLASSES)
def test_a_model_tells_its_name_and_numbers(bundles, cls):
    model = cls(bundles[cls], use_fp16=False)
    facts = model.bundle.manifest.model
    assert (model.name, model.dim, model.max_length) == (facts.name, facts.dim, facts.max_length)
    dense = model.encode(["text"])
    dense = dense["dense_vecs"] if isinstance(dense, dict) else dense
    assert dense.shape == (1, model.dim)
    model.truncate_dim = 7
    assert model.dim == 7
    assert pickle.loads(pickle.dumps(model)).dim == 7
    model.truncate_dim = 10_000
    assert model.dim == facts.dim
    for name in ("name", "dim", "max_length"):
        with pytest.raises(AttributeError):
            setattr(model, name, 5)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["max_length", "dim", "name"])
def test_an_option_of_that_name_has_no_effect_and_says_so(bundles, cls, name):
    # FlagEmbedding's classes keep it as an attribute, and do nothing with it.
    with pytest.warns(UserWarning, match=rf"{cls.__name__}\(\) has no option '{name}'") as caught:
        model = cls(bundles[cls], **{name: 5})
    assert caught[0].filename == __file__
    assert getattr(model, name) != 5
    assert model.kwargs == {name: 5}


# -- An instruction that leaves no room -----------------------------------------------------


def dense(found):
    return found["dense_vecs"] if isinstance(found, dict) else found


@pytest.mark.parametrize("cls", [FlagModel, BGEM3FlagModel])
def test_an_instruction_that_fills_the_length_warns_with_the_least_that_will_do(bundles, cls):
    options = {"query_instruction_for_retrieval": LONG, "query_max_length": 64}
    model = cls(bundles[cls], use_fp16=False, **options)
    with pytest.warns(UserWarning, match="leaves 62 tokens for instruction and text, and the inst"):
        one, other = dense(model.encode_queries(["heat pump", "zebra"]))
    # As in FlagEmbedding, but now it is said.
    np.testing.assert_array_equal(one, other)
    with pytest.warns(UserWarning, match="nothing of any text would be read") as caught:
        model.encode_queries("zebra")
    assert len(caught) == 1
    least = int(str(caught[0].message).partition("Pass max_length=")[2].split()[0])
    with pytest.warns(UserWarning, match="nothing of any text"):
        model.encode_queries("zebra", max_length=least - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = dense(model.encode_queries(["heat pump", "zebra"], max_length=least))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("cls", [FlagModel, BGEM3FlagModel])
def test_a_passages_instruction_is_looked_at_too(bundles, cls):
    model = cls(bundles[cls], passage_instruction_for_retrieval=LONG, passage_max_length=64)
    with pytest.warns(UserWarning, match="nothing of any text would be read"):
        model.encode_corpus(["heat pump", "zebra"])
    with pytest.warns(UserWarning, match="nothing of any text would be read"):
        model.encode(["zebra"], max_length=32, instruction=LONG, instruction_format="{}{}")


def test_decoders_refuse_it(bundles):
    options = {"query_instruction_for_retrieval": LONG, "query_max_length": 64}
    for cls in (FlagLLMModel, FlagICLModel):
        model = cls(bundles[cls], use_fp16=False, **options)
        with pytest.raises(ValueError, match="nothing of any text would be read"):
            model.encode_queries(["heat pump", "zebra"])


def test_where_no_length_will_do_a_shorter_instruction_is_the_advice(bundles):
    model = FlagModel(bundles[FlagModel], query_instruction_for_retrieval=LONG * 3)
    with pytest.warns(UserWarning, match="would be the same. Pass a shorter instruction$"):
        model.encode_queries("zebra")


@pytest.mark.parametrize("instruction", ["Ask: ", "搜索", "", "\ufdfa", "x" * 400])
def test_an_instruction_that_leaves_room_is_no_matter(bundles, instruction):
    model = FlagModel(bundles[FlagModel], query_instruction_for_retrieval=instruction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.encode_queries(TEXTS)
    assert_same(found, model.encode([instruction + text for text in TEXTS]), tolerance=0)


def test_an_instruction_behind_the_text_is_no_matter(bundles):
    model = FlagModel(bundles[FlagModel])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["zebra"], max_length=64, instruction=LONG, instruction_format="{1}{0}")
