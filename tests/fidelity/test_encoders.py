"""Vectors against FlagEmbedding 1.4.2 itself, on trained weights and at full size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bge_export.parity_texts import PARITY_TEXTS
from bge_runtime import FlagModel
from bge_runtime.bundle.parity import compare
from bge_runtime.sources import MODELS
from tests.helpers.bundles import SHARED
from tests.helpers.flag_embedding import MANY_TEXTS, flag_embedding
from tests.helpers.runtime import assert_fp32_on_cpu

SHAPES = ["bge-small-en-v1.5", "bge-small-zh-v1.5"]
LARGER_SHAPES = [
    f"bge-{size}-{language}-v1.5" for language in ("en", "zh") for size in ("base", "large")
]


def embed(model: FlagModel, texts: list[str]) -> np.ndarray:
    """Embed with one call, and assert what was in force."""
    assert_fp32_on_cpu(model)
    assert model.engine.info.variant == "cpu-fp32"
    vectors = model.encode(texts)
    assert vectors.dtype == np.float32
    return vectors


def test_trained_weights(
    minilm_bundle: Callable[[str], Path], minilm_vectors: Callable[[str], np.ndarray]
):
    ours = {
        pooling: embed(FlagModel(str(minilm_bundle(pooling)), pooling_method=pooling), MANY_TEXTS)
        for pooling in ("mean", "cls")
    }
    for pooling, other in (("mean", "cls"), ("cls", "mean")):
        expected = minilm_vectors(pooling)
        assert expected.dtype == np.float32
        assert compare(ours[pooling], expected).failures("fp32") == [], pooling
        assert compare(ours[other], expected).failures("fp32") != [], pooling


@pytest.mark.parametrize(
    "name",
    [
        *SHAPES,
        *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER_SHAPES),
    ],
)
def test_full_size(name: str, tmp_path: Path):
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder.exporter import export_encoder
    from bge_export.synthetic.encoder import write_random_checkpoint
    from bge_export.targets import select_encoder_targets

    facts = MODELS[name]
    language = "zh" if "-zh" in name else "en"
    tokenizer = SHARED / "models" / f"bge-small-{language}-v1.5"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    write_random_checkpoint(
        facts, folder, seed=7, tokenizer=tokenizer if tokenizer.is_dir() else None
    )
    checkpoint = inspect_checkpoint(folder, source=facts.hub_id)
    export_encoder(checkpoint, tmp_path / name, select_encoder_targets(["cpu", "portable"], []))
    texts = list(PARITY_TEXTS)
    expected = flag_embedding(folder, texts, pooling="cls")
    parity = compare(embed(FlagModel(str(tmp_path / name), use_fp16=False), texts), expected)
    assert parity.failures("fp32") == [], parity
