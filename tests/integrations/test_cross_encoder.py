"""Other tools read a reranker's bundle as a checkpoint's folder, and give the same scores."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bge_bench.systems.base import quiet
from bge_runtime import FlagReranker
from tests.helpers.bundles import export
from tests.helpers.rerankers import reranker_bundle, reranker_checkpoint

PAIRS = [
    ("how do I reset the router", "Hold the button at the back for ten seconds."),
    ("why does ice float", "The mill by the river was sold. " * 200),
    ("图书馆什么时候开放", "图书馆将于下周一重新开放。"),
    ("", "a passage without a query"),
    ("the same text", "the same text"),
]
NAMES = ("bert", "xlm-roberta")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(name: str) -> Path:
    return reranker_bundle(name, targets=("openvino", "cpu"))


@pytest.fixture(scope="module")
def expected(bundle: Path) -> NDArray[np.float64]:
    """Our own logits in fp32."""
    model = FlagReranker(str(bundle), use_fp16=False)
    assert model.engine.info.precision == "fp32"
    return np.array(model.compute_score([list(pair) for pair in PAIRS]))


def cross_encoder(folder: Path, **options: Any) -> Any:
    from sentence_transformers import CrossEncoder

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CrossEncoder(str(folder), **options)


def logits(model: Any) -> NDArray[np.float32]:
    from torch.nn import Identity

    found: NDArray[np.float32] = model.predict(PAIRS, activation_fn=Identity())
    return found


def test_sentence_transformers_on_the_checkpoint_gives_these_scores(
    name: str, expected: NDArray[np.float64]
):
    found = logits(cross_encoder(reranker_checkpoint(name), device="cpu"))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("backend", "limit"),
    [
        ("onnx", 1e-4),
        # Its file holds weights in 16 bits.
        ("openvino", 0.05),
    ],
)
def test_sentence_transformers_reads_the_bundle(
    bundle: Path, expected: NDArray[np.float64], backend: str, limit: float
):
    options: dict[str, Any] = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
    if backend == "onnx":
        options = {"file_name": "onnx/model.onnx"}
    found = logits(cross_encoder(bundle, backend=backend, model_kwargs=options))
    assert found.shape == (len(PAIRS),)
    np.testing.assert_allclose(found, expected, atol=limit)


def test_optimum_reads_the_bundle(bundle: Path, expected: NDArray[np.float64]):
    from transformers import AutoTokenizer

    optimum = pytest.importorskip("optimum.onnxruntime")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = optimum.ORTModelForSequenceClassification.from_pretrained(
            str(bundle), subfolder="onnx", file_name="model.onnx"
        )
        tokenizer = AutoTokenizer.from_pretrained(str(bundle))
    queries, passages = map(list, zip(*PAIRS, strict=True))
    inputs = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
    found = model(**inputs).logits
    assert found.shape == (len(PAIRS), 1)
    np.testing.assert_allclose(found.numpy().ravel(), expected, atol=1e-4)


def test_an_activation_and_a_length_of_the_checkpoint_are_followed(
    made_once: Callable[..., Path], tmp_path: Path
):
    checkpoint = tmp_path / "reranker"
    model = cross_encoder(reranker_checkpoint("bert"), device="cpu", max_length=40)
    from torch.nn import Identity

    model.activation_fn = Identity()
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(checkpoint))
    assert json.loads((checkpoint / "modules.json").read_text())
    bundle = export(checkpoint, tmp_path / "bundle", pooling=None, targets=("portable",))
    shutil.rmtree(checkpoint)
    theirs = cross_encoder(bundle, backend="onnx")
    np.testing.assert_allclose(theirs.predict(PAIRS), model.predict(PAIRS), atol=1e-4)
    assert np.ptp(theirs.predict(PAIRS)) > 1  # logits, and no probabilities
