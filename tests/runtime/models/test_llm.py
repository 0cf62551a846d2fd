"""``FlagLLMModel`` does what FlagEmbedding's does."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
from click.testing import CliRunner

from bge_runtime import BGEM3FlagModel, Bundle, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel
from bge_runtime.cli import embed
from bge_runtime.cli.doctor import main as doctor
from bge_runtime.errors import BundleError, PoolingError
from bge_runtime.variants.parity_check import measure_parity
from tests.helpers.runtime import TEXTS, assert_fp32_on_cpu, assert_same

TASK = "Given a web search query, retrieve relevant passages that answer the query."
OPTIONS = {"use_fp16": False, "devices": "cpu", "batch_size": 4}


@pytest.fixture(scope="module")
def pair(upstream, decoder):
    """Makes our model and FlagEmbedding's of the same weights, with the same options."""

    def make(**options):
        options = {**OPTIONS, **options}
        ours = FlagLLMModel(decoder.bundle, **options)
        assert_fp32_on_cpu(ours)
        return ours, upstream.FlagLLMModel(decoder.checkpoint, **options)

    return make


@pytest.fixture(scope="module")
def plain(decoder):
    """The tiny decoder. Shared: leave its attributes alone."""
    return FlagLLMModel(decoder.bundle, use_fp16=False, query_instruction_for_retrieval=TASK)


@pytest.mark.parametrize("name", ["FlagLLMModel", "FlagICLModel"])
def test_the_constructor_takes_what_flagembeddings_does(upstream, name):
    ours = inspect.signature({"FlagLLMModel": FlagLLMModel, "FlagICLModel": FlagICLModel}[name])
    theirs = inspect.signature(getattr(upstream, name))
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    for signature in (ours, theirs):
        assert signature.parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    found, expected = (
        [(p.name, p.default) for p in signature.parameters.values() if p.kind is positional]
        for signature in (ours, theirs)
    )
    assert found == expected


@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus"])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[2]], ids=["list", "string"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"query_instruction_for_retrieval": TASK},
        {
            "query_instruction_for_retrieval": TASK,
            "query_instruction_format": "<instruct>{}\\n<query>{}",
            "passage_instruction_for_retrieval": "a passage: ",
            "passage_instruction_format": "{} {}",
            "query_max_length": 64,
            "passage_max_length": 9,
        },
        {"normalize_embeddings": False, "truncate_dim": 16},
    ],
    ids=["plain", "instruction", "formats-and-lengths", "raw-and-short"],
)
def test_it_gives_what_flagembedding_gives(pair, method, texts, options):
    ours, theirs = pair(**options)
    tolerance = 1e-4 if options.get("normalize_embeddings") is False else 1e-5
    assert_same(getattr(ours, method)(texts), getattr(theirs, method)(texts), tolerance=tolerance)


def test_an_instruction_may_come_with_the_call(pair):
    ours, theirs = pair()
    options = {"instruction": TASK, "instruction_format": "{}: {}", "max_length": 50}
    assert_same(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))


def test_padding_to_a_multiple_is_taken(pair):
    # FlagEmbedding's advice for bge-multilingual-gemma2.
    ours, theirs = pair(query_instruction_for_retrieval=TASK)
    assert_same(
        ours.encode_queries(TEXTS, pad_to_multiple_of=8),
        theirs.encode_queries(TEXTS, pad_to_multiple_of=8),
    )


def test_one_device_gives_the_same_without_an_instruction(pair):
    ours, theirs = pair(query_instruction_for_retrieval=TASK)
    assert_same(ours.encode_single_device(TEXTS), theirs.encode_single_device(TEXTS))


def test_no_texts_give_no_rows(plain):
    for method in (plain.encode, plain.encode_queries, plain.encode_corpus):
        assert method([]).shape == (0, 64)
        assert method([]).dtype == np.float32


def test_pooling_is_the_last_tokens(upstream, decoder):
    for cls, folder in (
        (FlagLLMModel, decoder.bundle),
        (FlagICLModel, decoder.bundle),
        (upstream.FlagLLMModel, decoder.checkpoint),
    ):
        with pytest.raises(ValueError, match="must be 'last_token' for LLM-based models"):
            cls(folder, pooling_method="cls")
    assert FlagLLMModel(decoder.bundle, pooling_method="last_token").pooling_method == "last_token"


# -- The right class for a bundle ---------------------------------------------------------


@pytest.mark.parametrize("cls", [FlagModel, BGEM3FlagModel])
def test_a_class_for_encoders_names_the_one_for_decoders(decoder, cls):
    with pytest.raises(BundleError, match=r"decoder-only-base.*Open it with FlagLLMModel"):
        cls(decoder.bundle)


@pytest.mark.parametrize("cls", [FlagLLMModel, FlagICLModel])
def test_a_class_for_decoders_names_the_one_for_encoders(tiny_bundle, cls):
    with pytest.raises(BundleError, match=r"encoder-only-base.*Open it with FlagModel"):
        cls(str(tiny_bundle))


def test_a_bundle_says_which_class_opens_it(decoder):
    model = FlagAutoModel.from_finetuned(decoder.bundle)
    assert type(model) is FlagLLMModel
    assert model.query_instruction_format == "{}{}"  # no published name


@pytest.mark.parametrize(
    ("model_class", "cls"),
    [("decoder-only-base", FlagLLMModel), ("decoder-only-icl", FlagICLModel)],
)
def test_a_given_class_comes_with_the_plain_format(upstream, decoder, model_class, cls):
    options = {**OPTIONS, "query_instruction_for_retrieval": TASK}
    ours = FlagAutoModel.from_finetuned(decoder.bundle, model_class=model_class, **options)
    theirs = upstream.FlagAutoModel.from_finetuned(
        decoder.checkpoint, model_class=model_class, **options
    )
    assert type(ours) is cls
    assert type(theirs).__name__ == {"FlagLLMModel": "BaseLLMEmbedder"}.get(
        cls.__name__, "ICLLLMEmbedder"
    )
    assert ours.query_instruction_format == theirs.query_instruction_format == "{}{}"
    assert_same(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))


def test_the_pseudo_moe_class_is_refused_by_name(decoder):
    with pytest.raises(ValueError, match="the pseudo-MoE class is not in this version"):
        FlagAutoModel.from_finetuned(decoder.bundle, model_class="decoder-only-pseudo_moe")


# -- What cannot work ---------------------------------------------------------------------


def test_a_length_that_the_instruction_fills_is_an_error(plain):
    (taken,) = plain.tokenizer.encode_bare([f"Instruct: {TASK}\nQuery:"])
    least = len(taken) + plain.tokenizer.special_tokens + 1
    for texts in ("apples", ["apples", "pears"], []):
        with pytest.raises(
            ValueError, match=f"the instruction alone takes {len(taken)}.*max_length={least}"
        ):
            plain.encode_queries(texts, max_length=least - 1)
    apples, pears = plain.encode_queries(["apples", "pears"], max_length=least)
    assert np.abs(apples - pears).max() > 0.01


@pytest.mark.parametrize("template", ["{}", "no place", "{}{}{}", "{a}{b}", "{}{"])
def test_a_format_without_two_places_is_an_error(decoder, template):
    model = FlagLLMModel(
        decoder.bundle,
        query_instruction_for_retrieval=TASK,
        query_instruction_format=template,
    )
    with pytest.raises(ValueError, match=r"instruction format .* needs two"):
        model.encode_queries("apples")


# -- The tools ----------------------------------------------------------------------------


def test_a_decoder_proves_itself_where_padding_and_lengths_meet(decoder):
    bundle = Bundle.open(decoder.bundle)
    for variant in bundle.manifest.variants:
        if variant.precision == "fp32":
            _, parity = measure_parity(bundle, variant)
            assert parity.max_error < 1e-5


def test_the_doctor_verifies_a_decoder(decoder):
    result = CliRunner().invoke(doctor, ["doctor", "--verify", decoder.bundle])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "instruction"),
    [(["--instruction", TASK], TASK), (["--instruction", ""], None)],
    ids=["instruction", "none"],
)
def test_the_command_puts_an_instruction_before_queries(decoder, arguments, instruction):
    result = CliRunner().invoke(
        embed.main, [decoder.bundle, "--query", *arguments], input="apples\npears\n"
    )
    assert result.exit_code == 0, result.output
    found = [json.loads(line)["embedding"] for line in result.stdout.splitlines()]
    model = FlagAutoModel.from_finetuned(
        decoder.bundle, query_instruction_for_retrieval=instruction
    )
    expected = model.encode_queries(["apples", "pears"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)  # bf16 where there is it


def test_the_command_takes_examples_for_their_class_only(decoder, tmp_path):
    examples = tmp_path / "examples.json"
    examples.write_text('[{"query": "a", "response": "b"}]')
    result = CliRunner().invoke(
        embed.main,
        [decoder.bundle, "--query", "--instruction", TASK, "--examples", str(examples)],
        input="apples\n",
    )
    assert result.exit_code == 1
    assert "--examples are for models of class decoder-only-icl" in result.stderr


def test_a_pooling_error_is_one_of_ours(decoder):
    with pytest.raises(PoolingError):
        FlagLLMModel(decoder.bundle, pooling_method="mean")
