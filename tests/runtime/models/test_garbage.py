"""What a call made goes with its last reference, not when the garbage collector comes by.

The collector looks at old objects only once there are a quarter more of them, whatever they weigh:
the vectors of hundreds of calls may wait for it.
"""

from __future__ import annotations

import contextlib
import gc
import warnings

import pytest

from bge_runtime import BGEM3FlagModel, FlagLLMModel
from bge_runtime.encoding import pipeline
from bge_runtime.errors import InferenceError, OutOfMemoryError
from tests.helpers.runtime import TEXTS

MANY = [f"{text} {number}" for number in range(12) for text in TEXTS]
"""Enough for several batches, side by side."""


def unreachable_after(call):
    """Call, and count what only the collector can free: the least of three times.

    The first call may import things, and other threads of the tests may leave something as well.
    """
    call()
    gc.collect()
    gc.disable()
    try:
        return min((call(), gc.collect())[1] for _ in range(3))
    finally:
        gc.enable()


@pytest.mark.parametrize("texts", [TEXTS[0], TEXTS[:3], MANY], ids=["one", "few", "many"])
def test_vectors(model, texts):
    assert unreachable_after(lambda: model.encode(texts)) == 0


def test_vectors_of_several_windows(model, monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW", 50)
    assert unreachable_after(lambda: model.encode(MANY)) == 0


def test_all_outputs_of_m3(tiny_m3_bundle):
    m3 = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False, devices="cpu")
    outputs = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    assert unreachable_after(lambda: m3.encode(MANY, **outputs)) == 0
    assert unreachable_after(lambda: m3.encode(MANY, sparse_format="csr", **outputs)) == 0
    assert unreachable_after(lambda: m3.compute_score([(a, a) for a in TEXTS])) == 0


def test_vectors_of_a_decoder_with_a_prefix(decoder):
    model = FlagLLMModel(
        decoder.bundle, use_fp16=False, query_instruction_for_retrieval="Find an answer."
    )
    assert unreachable_after(lambda: model.encode_queries(TEXTS)) == 0
    assert model.prefix_cache.stats.hits


def test_batches_that_were_halved(model, monkeypatch):
    def short_of_memory(ids, *rest, **options):
        if len(ids) > 2:
            raise OutOfMemoryError("too large")
        return run(ids, *rest, **options)

    def encode():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.encode(TEXTS)

    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", short_of_memory)
    assert unreachable_after(encode) == 0


def test_a_bad_text_in_a_later_window(model, monkeypatch):
    def encode():
        with contextlib.suppress(ValueError):
            model.encode([*MANY, "\ud800"])

    monkeypatch.setattr(pipeline, "_WINDOW", 50)
    assert unreachable_after(encode) == 0


@pytest.mark.parametrize("texts", [TEXTS[0], MANY], ids=["one", "many"])
def test_texts_that_fail(model, monkeypatch, texts):
    def fail(*_, **__):
        raise InferenceError("no")

    def encode():
        with contextlib.suppress(InferenceError):
            model.encode(texts)

    monkeypatch.setattr(model.engine, "run", fail)
    assert unreachable_after(encode) == 0
