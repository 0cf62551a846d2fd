"""NaN and infinity never reach a vector, a score or a file: an error names the text instead."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagLLMModel, FlagModel
from bge_runtime.bundle import COLBERT_VECS, SENTENCE_EMBEDDING, TOKEN_WEIGHTS
from bge_runtime.encoding import pipeline
from bge_runtime.encoding.postprocess import find_not_finite, normalize
from bge_runtime.errors import NotFiniteError
from bge_runtime.m3.lexical import LexicalWeights
from bge_runtime.stores import (
    to_chroma_sparse,
    to_milvus_sparse,
    to_qdrant_multivector,
    to_qdrant_sparse,
)
from bge_runtime.variants import parity_check
from tests.helpers.runtime import SAME_VALUE, WrappedEngine

WRONG = [np.nan, np.inf, -np.inf]


class Spoiling(WrappedEngine):
    """An engine that writes a number into one output of the text with some token."""

    def __init__(self, inner, token, output, value, *, at=0, precision="fp32"):
        super().__init__(inner)
        self.info = replace(self.info, precision=precision)
        self.token, self.output, self.value, self.at = token, output, value, at

    def run(self, input_ids, attention_mask, outputs, *, past=None):
        inner = self.inner
        results = inner.run(input_ids, attention_mask, outputs, **({"past": past} if past else {}))
        for name, values in zip(outputs, results, strict=True):
            if name == self.output:
                rows = np.flatnonzero((input_ids == self.token).any(axis=1))
                values[rows, self.at] = self.value
        return results


def spoil(model, text, output=SENTENCE_EMBEDDING, value=np.nan, **options):
    """Let the model compute a number for ``text``, which alone has its last word's token."""
    token = model.tokenizer.encode_bare([text])[0][-1]
    engine = Spoiling(model.engine, token, output, value, **options)
    model._engines.opened = dict.fromkeys(model._engines.opened, engine)
    return model


def texts_with(text, at, count=40):
    texts = [f"{'some words ' * (number % 7)}here" for number in range(count)]
    texts[at] = text
    return texts


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("window", [8, 2048])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_dense_vector_names_its_text(tiny_bundle, monkeypatch, value, window, normalised):
    monkeypatch.setattr(pipeline, "_WINDOW", window)
    model = FlagModel(str(tiny_bundle), use_fp16=False, normalize_embeddings=normalised)
    spoil(model, "zebra", value=value)
    with pytest.raises(
        NotFiniteError, match=r"^text 29 has NaN or infinity in its sentence_emb"
    ) as e:
        model.encode(texts_with("a zebra", at=29), batch_size=4)
    # Which engine, on which device, in which precision; and what to do.
    assert str(model.engine.info) in str(e.value)
    assert "bge-runtime doctor --verify" in str(e.value)
    with pytest.raises(NotFiniteError, match=r"^text 0 has NaN"):
        model.encode("zebra")
    assert np.isfinite(model.encode(texts_with("a horse", at=29))).all()


def test_what_to_do_is_by_precision(tiny_bundle):
    model = spoil(FlagModel(str(tiny_bundle)), "zebra", precision="bf16")
    with pytest.raises(
        NotFiniteError, match=r"cpu \(CPUExecutionProvider\), bf16.*precision='fp32'"
    ):
        model.encode("zebra")


def test_a_decoders_vector_names_its_text(decoder):
    model = spoil(FlagLLMModel(decoder.bundle, use_fp16=False, prefix_cache_mb=0), "zebra")
    with pytest.raises(NotFiniteError, match=r"^text 3 has NaN"):
        model.encode(texts_with("a zebra", at=3, count=6))


@pytest.fixture
def m3(tiny_m3_bundle):
    return BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)


@pytest.mark.parametrize("output", [SENTENCE_EMBEDDING, TOKEN_WEIGHTS, COLBERT_VECS])
@pytest.mark.parametrize("value", WRONG)
def test_each_of_m3s_outputs_names_its_text(m3, output, value):
    spoil(m3, "zebra", output, value)
    asked = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    with pytest.raises(NotFiniteError, match=f"^text 5 has NaN or infinity in its {output}"):
        m3.encode(texts_with("a zebra", at=5), **asked)


@pytest.mark.parametrize("output", [SENTENCE_EMBEDDING, TOKEN_WEIGHTS, COLBERT_VECS])
def test_scores_name_their_pair(m3, output):
    spoil(m3, "zebra", output)
    pairs = [("the same", "as before")] * 3 + [("the same", "a zebra"), ("zebra", "a horse")]
    for batch_size in (1, 2, 8):
        with pytest.raises(NotFiniteError, match=r"^sentence_pairs\[(3\]\[1|4\]\[0)\] has NaN"):
            m3.compute_score(pairs, batch_size=batch_size)


def test_padding_may_hold_anything(m3):
    # Of the text, not at the end: what a graph computes for padding is cut off.
    asked = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    texts = ["zebra", "a much longer text of many words"]
    expected = m3.encode(texts, **asked)

    class PaddingIsNan(WrappedEngine):
        def __init__(self, inner):
            super().__init__(inner)
            self.batches = replace(inner.batches, overhead_tokens=1000)  # one batch
            self.padded = 0

        def run(self, input_ids, attention_mask, outputs, *, past=None):
            results = super().run(input_ids, attention_mask, outputs)
            for name, values in zip(outputs, results, strict=True):
                if name != SENTENCE_EMBEDDING:
                    first = 1 if name == COLBERT_VECS else 0
                    values[attention_mask[:, first:] == 0] = np.nan
            self.padded += int((attention_mask == 0).sum())
            return results

    engine = PaddingIsNan(m3.engine)
    m3._engines.opened = {"cpu": engine}
    found = m3.encode(texts, **asked)
    assert engine.padded
    np.testing.assert_allclose(found["dense_vecs"], expected["dense_vecs"], rtol=0, atol=SAME_VALUE)
    for ours, theirs in zip(found["colbert_vecs"], expected["colbert_vecs"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=SAME_VALUE)
    assert [*map(len, found["lexical_weights"])] == [*map(len, expected["lexical_weights"])]


@pytest.mark.parametrize(
    ("values", "lengths", "row"),
    [
        (np.zeros((3, 4)), None, None),
        (np.array([[0, 1], [np.nan, 0], [np.inf, 0]]), None, 1),
        (np.array([0, 1, -np.inf]), None, 2),
        (np.array([[0, np.nan], [0, 0]]), [1, 2], None),
        (np.array([[0, np.nan], [np.nan, 0]]), [1, 2], 1),
        (np.zeros((0, 4)), None, None),
    ],
)
def test_the_first_row_that_is_not_finite_is_found(values, lengths, row):
    assert find_not_finite(values, lengths) == row


def test_rows_of_several_lengths_are_looked_at():
    rows = np.empty(3, dtype=object)
    rows[:] = [np.zeros((2, 4)), np.zeros((1, 4)), np.full((3, 4), np.nan)]
    assert find_not_finite(rows, [2, 1, 3]) == 2
    assert find_not_finite(rows[:2], [2, 1]) is None


# -- Unit length ----------------------------------------------------------------------------


def test_unit_length_is_torchs(upstream):
    import torch

    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    rows *= np.array([0, 1, 1e-20, 1e-10, 1e15, 1e-45], dtype=np.float32)[:, None]
    expected = torch.nn.functional.normalize(torch.from_numpy(rows), dim=-1).numpy()
    np.testing.assert_allclose(normalize(rows), expected, rtol=1e-6, atol=1e-30)
    assert not normalize(rows)[0].any()


def test_a_vector_whose_squares_overflow_has_unit_length():
    rows = np.array([[3e30, 4e30], [3, 4]], dtype=np.float32)
    unit = normalize(rows)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)


def test_a_component_that_float16_has_no_number_for_names_its_text(tiny_bundle, monkeypatch):
    model = FlagModel(str(tiny_bundle), use_fp16=False, normalize_embeddings=False)
    spoil(model, "zebra", value=1e5)
    assert model.encode(["zebra"]).max() == np.float32(1e5)
    monkeypatch.setattr(FlagModel, "vector_dtype", np.dtype(np.float16))
    assert model.encode(["a horse"]).dtype == np.float16
    with pytest.raises(NotFiniteError, match=r"^text 7 has .* of 100000, which is too large"):
        model.encode(texts_with("a zebra", at=7))


# -- What is written ------------------------------------------------------------------------


@pytest.mark.parametrize("value", WRONG)
def test_stores_get_finite_numbers(value):
    wrong = [{"5": 0.5}, {}, {"7": 0.25, "9": value}]
    message = rf"lexical_weights\[2\] has weight {re.escape(str(value))} for token 9"
    for convert in (to_milvus_sparse, to_qdrant_sparse, to_chroma_sparse):
        for weights in (wrong, LexicalWeights.from_dicts(wrong)):
            with pytest.raises(ValueError, match=message):
                convert(weights)
    with pytest.raises(ValueError, match=r"lexical_weights\[0\] has weight"):
        to_milvus_sparse(wrong[2])
    vectors = [np.ones((2, 3)), np.array([[1, 1], [1, value]])]
    with pytest.raises(ValueError, match=r"colbert_vecs\[1\] has NaN or infinity .* token 1"):
        to_qdrant_multivector(vectors)


# -- Parity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [SENTENCE_EMBEDDING, TOKEN_WEIGHTS, COLBERT_VECS])
def test_no_output_passes_for_near_if_it_is_not_finite(m3, monkeypatch, output):
    reference = m3.bundle.reference()
    variant = next(v for v in m3.bundle.manifest.variants if v.name == "cpu-fp32")
    assert not parity_check.measure_parity(m3.bundle, variant)[1].failures("fp32")
    token = reference.token_ids[-1][1]
    spoilt = Spoiling(m3.engine, token, output, np.nan)
    monkeypatch.setattr(parity_check, "open_engine", lambda *_, **__: spoilt)
    assert parity_check.measure_parity(m3.bundle, variant)[1].failures("fp32")
