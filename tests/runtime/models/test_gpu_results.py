"""What models do for a GPU, with a CPU's engine that reports to be one: batches, types, memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, FlagModel
from bge_runtime.encoding import pipeline
from bge_runtime.engines.base import inference_error
from bge_runtime.errors import InferenceError, OutOfMemoryError
from tests.helpers.runtime import TEXTS, WrappedEngine


class Small(WrappedEngine):
    """An engine that runs out of memory above a number of tokens."""

    def __init__(self, inner, tokens):
        super().__init__(inner)
        self.tokens = tokens
        self.batches = replace(inner.batches, tokens=4096, overhead_tokens=4096)
        self.asked = []

    def run(self, input_ids, attention_mask, outputs, **rest):
        self.asked.append(input_ids.shape)
        if input_ids.size > self.tokens:
            error = RuntimeError("BFCArena: Failed to allocate memory for requested buffer")
            raise inference_error("ONNX Runtime", input_ids, error)
        return super().run(input_ids, attention_mask, outputs)


def test_a_batch_too_large_for_the_memory_is_run_in_halves(tiny_bundle):
    expected = FlagModel(str(tiny_bundle), use_fp16=False).encode(TEXTS)
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    small = model._engines.opened["cpu"] = Small(model._engines.opened["cpu"], 600)
    with pytest.warns(UserWarning, match=r"failed on a batch of \d+ texts.*two halves"):
        vectors = model.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert any(rows * columns > 600 for rows, columns in small.asked)
    # A half has no more padding than its longest text needs.
    assert min(columns for _, columns in small.asked) < 512


def test_one_text_too_large_for_the_memory_is_an_error(tiny_bundle):
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    model._engines.opened["cpu"] = Small(model._engines.opened["cpu"], 100)
    with pytest.warns(UserWarning, match="two halves"), pytest.raises(OutOfMemoryError):
        model.encode(TEXTS)


@pytest.mark.parametrize(
    "message",
    [
        "RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 1024 is smaller than requested bytes of 4096",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_out_of_memory_messages_are_recognized(message):
    ids = np.zeros((2, 3), dtype=np.int64)
    assert type(inference_error("x", ids, RuntimeError(message))) is OutOfMemoryError
    assert type(inference_error("x", ids, RuntimeError("no kernel"))) is InferenceError


def test_a_gpu_has_two_batches_in_progress(tiny_bundle):
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(WrappedEngine):
        waiting = True

        def __init__(self, inner):
            super().__init__(inner)
            self.batches = replace(inner.batches, concurrent_runs=2)

        def run(self, input_ids, attention_mask, outputs, *, past=None):
            if self.waiting:
                meeting.wait()  # breaks if the second one never comes
                self.waiting = False
            return super().run(input_ids, attention_mask, outputs)

    expected = model.encode(TEXTS)
    model._engines.opened["cpu"] = Meeting(model._engines.opened["cpu"])
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-5)


class InFp16(WrappedEngine):
    """An engine that reports to run on a GPU in fp16."""

    def __init__(self, inner):
        super().__init__(inner)
        self.info = replace(self.info, device="cuda", precision="fp16")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_of_a_gpu_in_fp16_have_flag_embeddings_type(tiny_bundle, tiny_mean_bundle, pooling):
    bundle = str(tiny_bundle if pooling == "cls" else tiny_mean_bundle)
    model = FlagModel(bundle, pooling_method=pooling, use_fp16=False)
    expected = model.encode(TEXTS)
    model._engines.opened["cpu"] = InFp16(model._engines.opened["cpu"])
    vectors = model.encode(TEXTS)
    # FlagEmbedding computes the mean in float32.
    assert vectors.dtype == (np.float16 if pooling == "cls" else np.float32)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("lengths", "texts"),
    [
        ([0] * 5000, 2048),
        ([20] * 5000, 2048),
        ([770] * 500, 64),
        ([10**6] * 5, 1),
        ([10] * 100 + [4000] * 500, 64),  # does not depend on the first ones
        ([], 1),
    ],
)
def test_the_first_texts_for_a_gpu_fill_about_one_batch(lengths, texts):
    assert pipeline.first_window_on_gpu(["x" * length for length in lengths]) == texts


def test_a_gpu_does_not_wait_for_the_tokens_of_all_texts(tiny_bundle, monkeypatch):
    monkeypatch.setattr(
        pipeline, "_FIRST_CHARACTERS_ON_GPU", 64 * sum(map(len, TEXTS)) // len(TEXTS)
    )
    model = FlagModel(str(tiny_bundle), use_fp16=False)
    texts = [text for _ in range(40) for text in TEXTS][:400]
    expected = model.encode(texts)
    encode, windows = model.tokenizer.encode, []

    def counted(texts, **options):
        windows.append((options.get("first", 0), len(texts)))
        return encode(texts, **options)

    monkeypatch.setattr(model.tokenizer, "encode", counted)
    model.encode(texts)
    assert windows == [(0, len(texts))]
    windows.clear()
    model._engines.opened["cpu"] = InFp16(model._engines.opened["cpu"])
    np.testing.assert_allclose(model.encode(texts), expected, rtol=0, atol=5e-4)
    assert windows[:2] == [(0, 64), (64, 128)]
    assert sum(size for _, size in windows) == len(texts)


def test_m3s_vectors_and_weights_have_flag_embeddings_types(tiny_m3_bundle):
    model = BGEM3FlagModel(str(tiny_m3_bundle), use_fp16=False)
    model._engines.opened["cpu"] = InFp16(model._engines.opened["cpu"])
    found = model.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    assert found["dense_vecs"].dtype == np.float16
    weights = [value for row in found["lexical_weights"] for value in row.values()]
    assert {type(value) for value in weights} == {np.float16}
    assert {tokens.dtype for tokens in found["colbert_vecs"]} == {np.dtype(np.float32)}
    # Scores are summed in float32, unlike FlagEmbedding's.
    scores = model.compute_score([("a b", "a c")])
    assert all(np.isfinite(value).all() for value in scores.values())
