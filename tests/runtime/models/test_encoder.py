"""``FlagModel`` beside FlagEmbedding 1.4.2's, on the same weights, in fp32."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from bge_runtime import FlagAutoModel, FlagModel
from bge_runtime.encoding import pipeline
from tests.helpers.runtime import TEXTS, WrappedEngine, assert_fp32_on_cpu, assert_same

pytestmark = pytest.mark.filterwarnings(
    # torch inside FlagEmbedding's side of the comparison
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:transformers.*",
)

LITERAL_NEWLINE = r"Instruct: {}\nQuery: {}"
FORMATS = [
    "{}{}",
    "Instruct: {}\nQuery: {}",
    LITERAL_NEWLINE,
    "<instruct>{}\n<query>{}",
    "{1} ({0})",
]


def sentence_forms():
    return [
        pytest.param("one string", id="string"),
        pytest.param("", id="empty-string"),
        pytest.param(TEXTS, id="list"),
        pytest.param(tuple(TEXTS), id="tuple"),
        pytest.param(["only one"], id="list-of-one"),
    ]


@pytest.mark.parametrize("sentences", sentence_forms())
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_values_shapes_and_dtypes_are_flagembeddings(pair, pooling, normalize, sentences):
    ours, theirs = pair(pooling=pooling, normalize_embeddings=normalize)
    assert_fp32_on_cpu(ours)
    assert_same(ours.encode(sentences), theirs.encode(sentences))


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
@pytest.mark.parametrize("dim", [1, 24, 48])
def test_truncated_vectors_are_flagembeddings(pair, dim, normalize):
    ours, theirs = pair(truncate_dim=dim, normalize_embeddings=normalize)
    assert_fp32_on_cpu(ours)
    assert ours.encode(TEXTS).shape == (len(TEXTS), dim)
    assert_same(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_a_truncate_dim_beyond_the_width_warns_and_keeps_all_as_flagembedding_does(pair):
    with pytest.warns(UserWarning, match="truncate_dim=100 is more than the 48 components"):
        ours, theirs = pair(truncate_dim=100)
    with pytest.warns(UserWarning, match="vectors keep all 48"):
        vectors = ours.encode(TEXTS)
    assert_same(vectors, theirs.encode(TEXTS))


@pytest.mark.parametrize("query_format", FORMATS)
def test_query_instructions_are_joined_as_flagembedding_does(pair, query_format):
    ours, theirs = pair(
        query_instruction_for_retrieval="Find what answers this: ",
        query_instruction_format=query_format,
    )
    assert_fp32_on_cpu(ours)
    assert_same(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))
    assert_same(ours.encode_queries("one"), theirs.encode_queries("one"))
    # Neither of them puts it before passages.
    assert_same(ours.encode_corpus(TEXTS), theirs.encode_corpus(TEXTS))
    assert_same(ours.encode_corpus(TEXTS), ours.encode(TEXTS), tolerance=0)


def test_a_literal_backslash_n_in_a_format_is_a_newline(pair):
    ours, theirs = pair()
    arguments = (LITERAL_NEWLINE, r"keeps its own \n", r"and so \n does the text")
    expected = "Instruct: keeps its own \\n\nQuery: and so \\n does the text"
    assert ours.get_detailed_instruct(*arguments) == expected
    assert theirs.get_detailed_instruct(*arguments) == expected
    # And it matters: the newline splits words, a backslash and an n are tokens.
    newline = ours.tokenizer.encode(["a\nb", r"a\nb"], max_length=9)
    assert len(newline[0]) != len(newline[1])


@pytest.mark.parametrize("passage_format", [None, *FORMATS])
def test_passage_instructions_are_joined_as_flagembedding_does(pair, passage_format):
    options = {"passage_instruction_for_retrieval": "A passage about: "}
    if passage_format is not None:
        options["passage_instruction_format"] = passage_format
    ours, theirs = pair(**options)
    assert_same(ours.encode_corpus(TEXTS), theirs.encode_corpus(TEXTS))
    assert_same(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))
    assert_same(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_an_instruction_given_to_encode_is_joined_as_flagembedding_does(pair):
    ours, theirs = pair()
    options = {"instruction": "Ask: ", "instruction_format": LITERAL_NEWLINE}
    assert_same(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))
    assert_same(ours.encode("one", **options), theirs.encode("one", **options))


@pytest.mark.parametrize("max_length", [2, 3, 16, 512])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_long_texts_are_cut_where_flagembedding_cuts_them(pair, pooling, max_length):
    ours, theirs = pair(pooling=pooling)
    assert_same(
        ours.encode(TEXTS, max_length=max_length), theirs.encode(TEXTS, max_length=max_length)
    )


def test_each_method_takes_the_default_length_that_flagembedding_takes(pair):
    ours, theirs = pair(query_max_length=5, passage_max_length=11)
    for method in ("encode", "encode_queries", "encode_corpus", "encode_single_device"):
        assert_same(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))
    # The two lengths differ in what they cut, so a mix-up would show.
    assert np.abs(ours.encode_queries(TEXTS) - ours.encode(TEXTS)).max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_is_taken_by_position_and_changes_no_vector(pair, batch_size):
    ours, theirs = pair()
    for method in ("encode", "encode_queries", "encode_corpus", "encode_single_device"):
        assert_same(
            getattr(ours, method)(TEXTS, batch_size, 32, True),
            getattr(theirs, method)(TEXTS, batch_size, 32, True),
        )


@pytest.mark.parametrize("sentences", ["one", TEXTS], ids=["string", "list"])
@pytest.mark.parametrize("where", ["constructor", "call"])
def test_torch_tensors_are_handed_out_as_flagembedding_does(pair, where, sentences):
    import torch

    option = {"convert_to_numpy": False}
    ours, theirs = pair(**(option if where == "constructor" else {}))
    call = option if where == "call" else {}
    vectors = ours.encode(sentences, **call)
    assert isinstance(vectors, torch.Tensor)
    assert_same(vectors, theirs.encode(sentences, **call))


def test_padding_to_a_multiple_is_taken_and_changes_no_vector(pair):
    ours, theirs = pair()
    for method in ("encode", "encode_queries", "encode_corpus"):
        assert_same(
            getattr(ours, method)(TEXTS, pad_to_multiple_of=8),
            getattr(theirs, method)(TEXTS, pad_to_multiple_of=8),
        )


def test_every_constructor_argument_may_be_given_by_position(
    upstream, tiny_checkpoint, tiny_bundle
):
    arguments = (
        *(False, False, False, "Ask: ", "{} {}"),
        *("cpu", "cls", False, None, 4, 6, 12, True, 24),
    )
    ours = FlagModel(str(tiny_bundle), *arguments)
    theirs = upstream.FlagModel(str(tiny_checkpoint), *arguments)
    for method in ("encode", "encode_queries", "encode_corpus"):
        assert_same(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))


def test_a_model_has_flagembeddings_attributes(pair):
    ours, theirs = pair(
        query_instruction_for_retrieval="Ask: ", passage_instruction_for_retrieval="Tell: "
    )
    # Objects of PyTorch and transformers, and the path, which is the bundle's here.
    other = {"model", "tokenizer", "model_name_or_path"}
    expected = {name: value for name, value in vars(theirs).items() if name not in other}
    assert {name: getattr(ours, name, "missing") for name in expected} == expected


def test_attributes_set_later_work_as_in_flagembedding(pair):
    ours, theirs = pair()
    for model in (ours, theirs):
        model.normalize_embeddings = False
        model.truncate_dim = 7
        model.passage_max_length = 5
        model.query_instruction_for_retrieval = "Ask: "
        # Without effect in both: it is read from the constructor's own arguments.
        model.passage_instruction_for_retrieval = "Tell: "
    for method in ("encode", "encode_queries", "encode_corpus"):
        assert_same(getattr(ours, method)(TEXTS), getattr(theirs, method)(TEXTS))


@pytest.mark.slow  # both of its processes import all of it
@pytest.mark.timeout(120)
def test_two_cpus_give_what_flagembeddings_two_processes_give(pair):
    ours, theirs = pair(devices=["cpu", "cpu"])
    assert_same(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_naming_the_cpu_twice_gives_what_one_gives(tiny_bundle, model):
    twice = FlagModel(str(tiny_bundle), devices=["cpu", "cpu"])
    assert twice.target_devices == ["cpu", "cpu"]
    assert_same(twice.encode(TEXTS), model.encode(TEXTS), tolerance=0)
    assert_same(twice.encode("one"), model.encode("one"), tolerance=0)


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]], ids=["one device", "two devices"])
def test_one_text_is_computed_without_what_several_need(tiny_bundle, model, monkeypatch, devices):
    alone = FlagModel(str(tiny_bundle), devices=devices)
    expected = model.encode(["only one", "beside another one"])[:1]
    monkeypatch.delattr(pipeline, "share_batches")
    assert_same(alone.encode(["only one"]), expected, tolerance=1e-6)
    assert_same(alone.encode("only one"), expected[0], tolerance=1e-6)
    with pytest.raises(NameError):
        alone.encode(["only one", "beside another one"])


def test_the_pool_methods_work_in_the_order_that_flagembedding_wants_them(model):
    pool = model.start_multi_process_pool(None)
    try:
        vectors = model.encode_multi_process(TEXTS, pool, batch_size=3, max_length=16)
    finally:
        model.stop_multi_process_pool(pool)
        model.stop_self_pool()
    assert_same(vectors, model.encode(TEXTS, batch_size=3, max_length=16), tolerance=0)
    # The model works on afterwards.
    assert_same(model.encode(TEXTS), model.encode(TEXTS), tolerance=0)


def test_encode_single_device_serves_a_device_the_model_has(model):
    vectors = model.encode_single_device(TEXTS, 4, 512, True, "cpu")
    assert_same(vectors, model.encode(TEXTS, batch_size=4), tolerance=0)


def test_a_device_is_named_as_in_the_constructor(model):
    vectors = model.encode_single_device(TEXTS, device="cpu:0")
    assert_same(vectors, model.encode(TEXTS), tolerance=0)
    with pytest.raises(ValueError, match="opened on cpu, not on 'cuda:0'; pass devices='cuda:0'"):
        model.encode_single_device(TEXTS, device=0)


def test_no_standard_error_is_no_terminal(model, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    assert model.encode(["text"] * 300).shape == (300, 48)


def test_pooling_that_is_not_given_is_the_bundles(tiny_mean_bundle, pair):
    unasked = FlagModel(str(tiny_mean_bundle))
    assert unasked.pooling_method == "mean"
    _, theirs = pair(pooling="mean")
    assert_same(unasked.encode(TEXTS), theirs.encode(TEXTS))


def test_use_fp16_gives_float32_on_a_cpu_as_in_flagembedding(
    tiny_bundle, upstream, tiny_checkpoint
):
    ours = FlagModel(str(tiny_bundle), use_fp16=True, devices="cpu")
    theirs = upstream.FlagModel(str(tiny_checkpoint), use_fp16=True, devices="cpu")
    # Their weights were rounded to fp16 on loading: measured at 4e-4 after three layers.
    assert_same(ours.encode(TEXTS), theirs.encode(TEXTS), tolerance=2e-3)


# -- The comparison itself is able to fail ------------------------------------------------


def test_the_comparison_notices_another_pooling(tiny_mean_bundle, pair):
    _, theirs = pair(pooling="cls")
    broken = FlagModel(str(tiny_mean_bundle))
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_same(broken.encode(TEXTS), theirs.encode(TEXTS))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_comparison_notices_an_ignored_mask(pair, pooling):
    class Unmasked(WrappedEngine):
        def run(self, input_ids, attention_mask, outputs, *, past=None):
            return super().run(input_ids, np.ones_like(attention_mask), outputs)

    ours, theirs = pair(pooling=pooling)
    assert_same(ours.encode(TEXTS), theirs.encode(TEXTS))
    ours._engines.opened = {"cpu": Unmasked(ours.engine)}
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_same(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_the_comparison_notices_a_lost_instruction(pair):
    ours, theirs = pair(query_instruction_for_retrieval="Ask: ")
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_same(ours.encode(TEXTS), theirs.encode_queries(TEXTS))


# -- Signatures ---------------------------------------------------------------------------


def by_position(function):
    """Names and defaults of the arguments that may be given by position."""
    return [
        (parameter.name, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]


@pytest.mark.parametrize(
    "method",
    [
        "encode",
        "encode_queries",
        "encode_corpus",
        "encode_single_device",
        "get_detailed_instruct",
        "encode_multi_process",
        "stop_multi_process_pool",
        "stop_self_pool",
    ],
)
def test_methods_take_flagembeddings_arguments_in_its_order(upstream, method):
    theirs = by_position(getattr(upstream.FlagModel, method))
    assert by_position(getattr(FlagModel, method)) == theirs


def test_the_constructor_takes_flagembeddings_arguments_in_its_order(upstream):
    expected = by_position(upstream.FlagModel.__init__)
    # On purpose: an exported graph has its pooling, and None is that one.
    expected[expected.index(("pooling_method", "cls"))] = ("pooling_method", None)
    assert by_position(FlagModel.__init__) == expected


def test_from_finetuned_takes_flagembeddings_arguments_in_its_order(upstream):
    theirs = by_position(upstream.FlagAutoModel.from_finetuned)
    assert by_position(FlagAutoModel.from_finetuned) == theirs


def test_our_own_options_are_keyword_only(upstream):
    for function in (FlagModel.__init__, FlagModel.encode, FlagModel.encode_single_device):
        theirs = inspect.signature(getattr(upstream.FlagModel, function.__name__)).parameters
        own = [
            parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in theirs
        ]
        assert own
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own)
