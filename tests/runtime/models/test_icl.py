"""``FlagICLModel`` puts the same tokens together as FlagEmbedding's does.

Vectors of a tiny decoder with Mistral's real tokenizer: another token anywhere shows.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bge_runtime import FlagAutoModel, FlagICLModel
from bge_runtime.cli import embed
from tests.helpers.runtime import PROPERTY, TEXTS, assert_fp32_on_cpu, assert_same

TASK = "Given a web search query, retrieve relevant passages that answer the query."
EXAMPLES = [
    {
        "instruct": TASK,
        "query": "what is a virtual interface",
        "response": "A virtual interface is a software-defined abstraction of a network card.",
    },
    {"query": "why does the back hurt", "response": "Mostly since the muscles beside it do."},
]
OPTIONS = {"use_fp16": False, "devices": "cpu", "batch_size": 4}

HARD = [
    *TEXTS,
    " leading and trailing ",
    "\n\nnew lines first",
    "<response> <query>in the text</s> <s> <unk>",
    "def f(x):\n    return {'a': x[0]}  # code",
    "ﬁ １２３ 👩‍👩‍👧‍👦 \u0000 e\u0301",
    "▁ ▁▁ lower one eighth block",
    "as part of a word: un" + "believ" * 40,
]


@pytest.fixture(scope="module")
def pair(upstream, mistral_decoder):
    """Makes our model and FlagEmbedding's of the same weights, with the same options."""

    def make(**options):
        options = {**OPTIONS, **options}
        ours = FlagICLModel(mistral_decoder.bundle, **options)
        assert_fp32_on_cpu(ours)
        return ours, upstream.FlagICLModel(mistral_decoder.checkpoint, **options)

    return make


@pytest.fixture(scope="module")
def with_examples(pair):
    """A pair with an instruction and examples. Shared: leave its attributes alone."""
    return pair(query_instruction_for_retrieval=TASK, examples_for_task=EXAMPLES)


@pytest.fixture(scope="module")
def bundle(decoder):
    """A bundle that is there without Mistral's tokenizer."""
    return decoder.bundle


# -- Next to FlagEmbedding ----------------------------------------------------------------


@pytest.mark.parametrize("max_length", [40, 64, 512])
def test_queries_behind_examples_are_flagembeddings(with_examples, max_length):
    ours, theirs = with_examples
    assert ours.prefix == theirs.prefix
    assert_same(
        ours.encode_queries(HARD, max_length=max_length),
        theirs.encode_queries(HARD, max_length=max_length),
    )


@PROPERTY
@given(st.lists(st.text(max_size=40), min_size=1, max_size=3), st.integers(34, 60))
def test_any_queries_behind_examples_are_flagembeddings(with_examples, texts, max_length):
    ours, theirs = with_examples
    assert_same(
        ours.encode_queries(texts, max_length=max_length),
        theirs.encode_queries(texts, max_length=max_length),
    )


def test_a_single_query_is_flagembeddings(with_examples):
    ours, theirs = with_examples
    assert_same(ours.encode_queries(HARD[4]), theirs.encode_queries(HARD[4]))
    assert_same(
        ours.encode_queries_single_device(HARD[4]), theirs.encode_queries_single_device(HARD[4])
    )
    assert_same(
        ours.encode_queries_single_device(HARD, max_length=60),
        theirs.encode_queries_single_device(HARD, max_length=60),
    )


@pytest.mark.parametrize("method", ["encode", "encode_corpus"])
def test_passages_get_neither_examples_nor_suffix(with_examples, method):
    ours, theirs = with_examples
    assert_same(getattr(ours, method)(HARD), getattr(theirs, method)(HARD))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"query_instruction_for_retrieval": TASK},
        {"suffix": " and so on", "query_instruction_for_retrieval": TASK},
        {"suffix": ""},
        {"examples_for_task": []},
        {"examples_for_task": EXAMPLES[:1]},
        {
            "examples_for_task": EXAMPLES,
            "query_instruction_for_retrieval": "Ask",
            "query_instruction_format": "{}\\n{}",
            "examples_instruction_format": "{}\\n{} -> {}",
            "query_max_length": 30,
            "truncate_dim": 16,
        },
    ],
    ids=[
        "nothing",
        "instruction",
        "suffix",
        "no-suffix",
        "no-examples",
        "examples",
        "formats",
    ],
)
def test_every_option_is_flagembeddings(pair, options):
    ours, theirs = pair(**options)
    assert (ours.prefix, ours.suffix) == (theirs.prefix, theirs.suffix)
    assert_same(ours.encode_queries(HARD), theirs.encode_queries(HARD))


def test_examples_can_be_replaced(pair):
    ours, theirs = pair(query_instruction_for_retrieval=TASK, examples_for_task=EXAMPLES)
    for examples in (EXAMPLES[1:], [], None, EXAMPLES[:1]):
        for model in (ours, theirs):
            model.set_examples(examples)
        assert ours.prefix == theirs.prefix
        assert_same(ours.encode_queries(HARD[:5]), theirs.encode_queries(HARD[:5]))


def test_an_example_is_put_together_as_flagembedding_does(upstream):
    parts = ("<instruct>{}\\n<query>{}\n{}", "do", "this", "so")
    expected = upstream.FlagICLModel.get_detailed_example(*parts)
    assert FlagICLModel.get_detailed_example(*parts) == expected


# -- Our own ------------------------------------------------------------------------------


def test_examples_are_computed_once(bundle):
    model = FlagICLModel(
        bundle, query_instruction_for_retrieval=TASK, examples_for_task=EXAMPLES, use_fp16=False
    )
    plain = FlagICLModel(
        bundle,
        query_instruction_for_retrieval=TASK,
        examples_for_task=EXAMPLES,
        use_fp16=False,
        prefix_cache_mb=0,
    )
    for texts in (TEXTS[4], TEXTS, TEXTS[5]):
        assert_same(model.encode_queries(texts), plain.encode_queries(texts))
    (examples,) = model.tokenizer.encode_bare([model.prefix])
    stats = model.prefix_cache.stats
    assert (stats.hits, stats.misses) == (2, 1)
    assert stats.tokens_saved >= len(examples) * (len(TEXTS) + 1)


def test_no_queries_give_no_rows(bundle):
    model = FlagICLModel(bundle, examples_for_task=[])
    assert model.encode_queries([]).shape == (0, 64)


def test_cleared_constructor_examples_stay_cleared(bundle):
    model = FlagICLModel(bundle, examples_for_task=EXAMPLES, query_instruction_for_retrieval=TASK)
    model.examples_for_task = None
    model.set_examples()
    assert model.prefix == ""


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ({"query": "a", "response": "b"}, TypeError, "must be a list of dictionaries, but is dict"),
        ("a", TypeError, "must be a list of dictionaries, but is str"),
        (["a"], TypeError, r"examples_for_task\[0\] must be a dictionary"),
        ([EXAMPLES[0], {"query": "a"}], ValueError, r"\[1\] needs .* lacks 'instruct', 'response'"),
        ([{**EXAMPLES[0], "query": None}], ValueError, r"\[0\] needs .* lacks 'query'"),
        ([EXAMPLES[1]], ValueError, "query_instruction_for_retrieval may .* lacks 'instruct'"),
        (EXAMPLES[:1] * 200, ValueError, "the examples and the suffix take .* can read 2048"),
    ],
)
def test_examples_that_lack_something_are_an_error(bundle, examples, error, message):
    with pytest.raises(error, match=message):
        FlagICLModel(bundle, examples_for_task=examples)
    model = FlagICLModel(bundle)
    with pytest.raises(error, match=message):
        model.set_examples(examples)
    assert model.prefix == ""


@pytest.mark.parametrize("template", ["{}", "{}{}", "{}{}{}{}", "{query}", "{}{}{"])
def test_an_examples_format_without_three_places_is_an_error(bundle, template):
    with pytest.raises(ValueError, match=r"instruction format .* needs three"):
        FlagICLModel(bundle, examples_for_task=EXAMPLES[:1], examples_instruction_format=template)


@pytest.mark.parametrize("template", ["{}", "{}{}{}"])
def test_a_query_format_without_two_places_is_an_error(bundle, template):
    model = FlagICLModel(
        bundle, query_instruction_for_retrieval=TASK, query_instruction_format=template
    )
    with pytest.raises(ValueError, match=r"instruction format .* needs two"):
        model.encode_queries("apples")


def test_a_length_that_instruction_and_suffix_fill_is_an_error(mistral_decoder):
    model = FlagICLModel(mistral_decoder.bundle, query_instruction_for_retrieval=TASK)
    with pytest.raises(ValueError, match="nothing of any text would be read") as caught:
        model.encode_queries(["apples", "pears"], max_length=20)
    least = int(str(caught.value).partition("Pass max_length=")[2].split()[0])
    with pytest.raises(ValueError, match="nothing of any text"):
        model.encode_queries([], max_length=least - 1)
    apples, pears = model.encode_queries(["apples", "pears"], max_length=least)
    assert np.abs(apples - pears).max() > 0.01


def test_examples_that_leave_little_room_shorten_the_queries(bundle):
    # The model reads 2048 tokens; the suffix must be among them.
    model = FlagICLModel(bundle, query_instruction_for_retrieval="Ask")
    model.set_examples([{"query": "a b " * 450, "response": "c " * 900}])
    texts = ["word " * 3000, "word " * 3000 + "and more"]
    with pytest.warns(UserWarning, match="max_length=1000 is more than the"):
        first, second = model.encode_queries(texts, max_length=1000)
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)


# -- The command --------------------------------------------------------------------------


def run_command(bundle, *arguments):
    return CliRunner().invoke(embed.main, [bundle, "--query", *arguments], input="apples\npears\n")


@pytest.fixture(scope="module")
def icl_bundle(decoder, tmp_path_factory):
    """The tiny decoder as one of bge-en-icl's class."""
    from pathlib import Path

    from tests.helpers.decoders import export_decoder

    output = tmp_path_factory.mktemp("bundles") / "tiny-icl"
    return str(export_decoder(Path(decoder.checkpoint), output, model_class="decoder-only-icl"))


def test_the_command_takes_examples_from_a_file(icl_bundle, tmp_path):
    file = tmp_path / "examples.json"
    file.write_text(json.dumps(EXAMPLES))
    options = ["--instruction", TASK, "--precision", "fp32"]
    result = run_command(icl_bundle, *options, "--examples", str(file))
    assert result.exit_code == 0, result.output
    found = [json.loads(line)["embedding"] for line in result.stdout.splitlines()]
    model = FlagAutoModel.from_finetuned(
        icl_bundle,
        query_instruction_for_retrieval=TASK,
        examples_for_task=EXAMPLES,
        precision="fp32",
    )
    assert type(model) is FlagICLModel
    np.testing.assert_allclose(found, model.encode_queries(["apples", "pears"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("[", "is not valid JSON"),
        ("null", "is not a JSON list; --examples takes a JSON list"),
        ('[{"query": "a"}]', r"examples_for_task\[0\] needs"),
    ],
)
def test_a_file_without_examples_is_an_error(icl_bundle, tmp_path, content, message):
    file = tmp_path / "examples.json"
    if content is not None:
        file.write_text(content)
    result = run_command(icl_bundle, "--instruction", TASK, "--examples", str(file))
    assert result.exit_code == 1
    assert message.replace("\\", "") in result.stderr
