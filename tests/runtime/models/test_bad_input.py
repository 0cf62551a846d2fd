"""Input that cannot be served is refused clearly, and the model works on afterwards."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bge_runtime import FlagModel
from bge_runtime.errors import (
    DeviceError,
    EngineError,
    EngineNotInstalledError,
    PoolingError,
    PrecisionError,
)
from tests.helpers.runtime import SAME_VALUE, TEXTS, assert_same


@pytest.fixture
def still_works(model):
    """The shared model; checked again when the test is over."""
    before = model.encode(TEXTS)
    yield model
    assert_same(model.encode(TEXTS), before, tolerance=0)


FORMAT = {"instruction": "Ask: "}


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (["fine", None], r"sentences\[1\] must be a string, not None"),
        (["fine", "fine", 3], r"sentences\[2\] must be a string, not int"),
        ([b"bytes"], r"sentences\[0\] must be a string, not bytes"),
        ([["nested"]], r"sentences\[0\] must be a string, not list"),
        (np.array([1.5]), r"sentences\[0\] must be a string, not float64"),
        (None, "a string or a list of strings, not None"),
        (7, "a string or a list of strings, not int"),
        (b"bytes", "a string or a list of strings, not bytes"),
        # Without an order to give vectors back in.
        ({"a": 1}, "a string or a list of strings, not dict"),
        ({"a", "b"}, "a string or a list of strings, not set"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus"])
def test_what_is_not_text_is_a_type_error_that_names_it(still_works, method, sentences, message):
    with pytest.raises(TypeError, match=message):
        getattr(still_works, method)(sentences)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1"),
        ({"batch_size": -3}, ValueError, "batch_size .* is -3"),
        ({"batch_size": 2.5}, ValueError, "batch_size .* is 2.5"),
        ({"batch_size": True}, ValueError, "batch_size .* is True"),
        ({"max_length": 0}, ValueError, "max_length must be a whole number of at least 1"),
        ({"max_length": 1}, ValueError, "max_length=1 leaves no room for the 2 special tokens"),
        ({"max_length": "8"}, ValueError, "max_length .* is '8'"),
        (FORMAT, TypeError, "instruction needs an instruction_format"),
        ({**FORMAT, "instruction_format": "{}"}, ValueError, "every text would be lost"),
        ({**FORMAT, "instruction_format": "no place"}, ValueError, "every text would be lost"),
        ({**FORMAT, "instruction_format": "{}{}{}"}, ValueError, "needs two places"),
        ({**FORMAT, "instruction_format": "{a}{b}"}, ValueError, "cannot be filled in"),
        ({**FORMAT, "instruction_format": "{}{"}, ValueError, "cannot be filled in"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_an_error_that_names_it(still_works, options, error, message):
    with pytest.raises(error, match=message):
        still_works.encode(["some", "texts"], **options)


@pytest.mark.parametrize("dim", [0, -5, 1.5, "8"])
def test_a_truncate_dim_that_leaves_nothing_is_an_error(tiny_bundle, dim):
    message = f"truncate_dim must be a whole number of at least 1, but is {dim!r}"
    with pytest.raises(ValueError, match=message):
        FlagModel(str(tiny_bundle), truncate_dim=dim)
    # Set later it is caught too, and can be mended.
    model = FlagModel(str(tiny_bundle))
    model.truncate_dim = dim
    with pytest.raises(ValueError, match=message):
        model.encode("text")
    model.truncate_dim = 8
    assert model.encode("text").shape == (8,)


@pytest.mark.parametrize("window", [2, 2048], ids=["many-windows", "one-window"])
def test_a_lone_surrogate_is_named_by_its_place_in_the_list(still_works, monkeypatch, window):
    monkeypatch.setattr("bge_runtime.encoding.pipeline._WINDOW", window)
    texts = ["fine", "fine", "fine", "fine", "fine", "a\ud800", "fine"]
    with pytest.raises(ValueError, match=r"text 5 is not valid Unicode: character 1 .* U\+D800"):
        still_works.encode(texts)


def test_a_text_of_100_000_words_is_cut_at_the_models_length(still_works):
    long = "several words of text " * 25_000
    cut = " ".join(long.split()[:1000])
    assert len(still_works.tokenizer.encode([cut], max_length=10_000)[0]) > 512
    np.testing.assert_allclose(
        still_works.encode(["short", long])[1], still_works.encode(cut), rtol=0, atol=SAME_VALUE
    )


def test_a_length_beyond_the_models_warns_and_is_cut(still_works):
    with pytest.warns(UserWarning, match="max_length=8192 is more than the 512 tokens"):
        vectors = still_works.encode(TEXTS, max_length=8192)
    assert_same(vectors, still_works.encode(TEXTS, max_length=512), tolerance=0)


@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus"])
def test_no_texts_give_an_empty_array(still_works, method):
    for nothing in ([], ()):
        vectors = getattr(still_works, method)(nothing)
        assert (vectors.shape, vectors.dtype) == ((0, 48), np.float32)


def test_no_texts_give_an_empty_array_under_every_option(tiny_bundle):
    pytest.importorskip("torch")
    model = FlagModel(
        str(tiny_bundle),
        truncate_dim=8,
        devices=["cpu", "cpu"],
        query_instruction_for_retrieval="Ask: ",
        convert_to_numpy=False,
    )
    assert tuple(model.encode_queries([]).shape) == (0, 8)


@pytest.mark.parametrize(
    "texts",
    [np.array(["one", "two"]), (text for text in ["one", "two"]), {"one": 1, "two": 2}.values()],
    ids=["numpy-array", "generator", "not-strings"],
)
def test_any_ordered_collection_of_strings_will_do(still_works, texts):
    if not isinstance(texts, np.ndarray) and "values" in type(texts).__name__:
        with pytest.raises(TypeError, match="must be a string, not int"):
            still_works.encode(texts)
        return
    assert_same(still_works.encode(texts), still_works.encode(["one", "two"]), tolerance=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"devices": "xpuu"}, DeviceError, "'xpuu'.*has variants for cpu only.*devices='cpu'"),
        ({"devices": "cuda:1"}, DeviceError, "'cuda:1'.*variants for cpu only.*--target cuda"),
        ({"devices": 1}, DeviceError, "'cuda:1'.*has variants for cpu only"),
        ({"devices": [0, 1]}, DeviceError, "'cuda:0'.*has variants for cpu only"),
        ({"devices": ["cpu", "cuda"]}, DeviceError, "'cuda'.*has variants for cpu only"),
        ({"devices": "cpu:1"}, DeviceError, "all processors are the one device 'cpu'"),
        ({"devices": "cuda:x"}, DeviceError, "unknown device 'cuda:x'"),
        ({"devices": "cuda:"}, DeviceError, "unknown device 'cuda:'"),
        ({"devices": ""}, DeviceError, "unknown device ''"),
        ({"devices": []}, DeviceError, "devices is an empty list"),
        ({"devices": 1.5}, TypeError, "a list of either.* but is 1.5"),
        ({"devices": [None]}, TypeError, "a list of either"),
        ({"devices": True}, TypeError, "a list of either"),
        ({"engine": "abacus"}, EngineError, "unknown engine 'abacus'.*auto, onnxruntime"),
        ({"use_bf16": True}, PrecisionError, "requested precision 'bf16' on cpu.*has fp32 there"),
        (
            {"precision": "int3"},
            PrecisionError,
            "unknown precision 'int3'; this bge-runtime has auto, fp32",
        ),
        ({"pooling_method": "mean"}, PoolingError, "exported with 'cls'.*--pooling mean"),
        ({"pooling_method": "last_token"}, PoolingError, "exported with 'cls'"),
        ({"threads": 0}, ValueError, "threads must be at least 1, but is 0"),
        ({"threads": 100_000}, ValueError, "threads must be at most 1024, but is 100000"),
        ({"bundle": 1}, TypeError, r"FlagModel\(\) has no option 'bundle'"),
        ({"encode": 1}, TypeError, r"FlagModel\(\) has no option 'encode'"),
    ],
    ids=str,
)
def test_what_a_bundle_cannot_serve_is_refused_when_it_is_opened(
    still_works, tiny_bundle, options, error, message
):
    with pytest.raises(error, match=message):
        FlagModel(str(tiny_bundle), **options)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", ["cpu:0"], ("cpu",)], ids=str)
def test_every_name_of_the_cpu_is_the_cpu(tiny_bundle, device):
    assert FlagModel(str(tiny_bundle), devices=device).target_devices == ["cpu"]


def test_a_device_the_model_was_not_opened_on_is_an_error(still_works):
    with pytest.raises(ValueError, match="opened on cpu, not on 'cuda:0'"):
        still_works.encode_single_device(TEXTS, device="cuda:0")


def test_an_unknown_constructor_option_warns_and_becomes_an_attribute(tiny_bundle, model):
    with pytest.warns(UserWarning, match=r"FlagModel\(\) has no option 'bacth_size'") as caught:
        unsure = FlagModel(str(tiny_bundle), bacth_size=4)
    assert caught[0].filename == __file__
    assert unsure.bacth_size == 4
    assert unsure.kwargs == {"bacth_size": 4}
    assert_same(unsure.encode(TEXTS), model.encode(TEXTS), tolerance=0)


@pytest.mark.parametrize("dims", [49, 100])
def test_the_warning_of_a_large_truncate_dim_points_at_the_caller(tiny_bundle, dims):
    with pytest.warns(UserWarning, match="vectors keep all 48") as caught:
        model = FlagModel(str(tiny_bundle), truncate_dim=dims)
    with pytest.warns(UserWarning, match="vectors keep all 48") as again:
        assert model.encode(["one"]).shape == (1, 48)
    assert [caught[0].filename, again[0].filename] == [__file__, __file__]


def test_a_missing_engine_is_an_error_that_says_what_to_install(
    still_works, tiny_bundle, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        EngineNotInstalledError, match=r"pip install 'bge-runtime\[cpu\]'"
    ) as caught:
        FlagModel(str(tiny_bundle))
    assert isinstance(caught.value, ImportError)


def test_asking_for_tensors_without_torch_is_an_error(still_works, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        still_works.encode("text", convert_to_numpy=False)
