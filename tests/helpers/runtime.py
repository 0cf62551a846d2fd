"""Texts, checks and engines that several tests of the runtime share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from bge_runtime.engines import Engine

SAME_VALUE = 1e-5
"""fp32 in another order of summation: the limit that the parity gate sets for fp32. The
tiny model was measured at 3e-7 for unit vectors and at 2e-6 for raw ones, whose norm is 7."""

PROPERTY = settings(
    max_examples=40,
    # The fixtures these tests take are read-only bundles and models.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXTS = [
    "",
    "a",
    "hello world",
    "hello world",
    "The quick brown fox jumps over the lazy dog, twice a day and once at night.",
    "  spaces\tand\nnew lines  ",
    "为这个句子生成表示以用于检索相关文章",
    "naïve café über straße 🤗 \u200b zero-width",
    "[CLS] someone wrote special tokens [SEP] [MASK] [PAD] into a text [UNK]",
    "one two three four five six seven eight nine ten " * 12,
    "a text of more than five hundred and twelve tokens " * 60,
    "x" * 300,
]
"""Real cases in one list: empty, one token, duplicates, mixed lengths, over-length."""


def assert_same(ours: Any, theirs: Any, *, tolerance: float = SAME_VALUE) -> None:
    """Check type, dtype, shape and values."""
    assert type(ours) is type(theirs)
    assert ours.dtype == theirs.dtype
    assert tuple(ours.shape) == tuple(theirs.shape)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


def assert_fp32_on_cpu(model: Any) -> None:
    """Check that the session really runs where and how a comparison assumes."""
    info = model.engine.info
    assert (info.engine, info.device, info.provider, info.precision) == (
        "onnxruntime",
        "cpu",
        "CPUExecutionProvider",
        "fp32",
    )


class WrappedEngine:
    """An engine that passes every call on; tests override ``run``."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.info = replace(inner.info, streams=1)  # every batch comes to ``run``
        self.batches = inner.batches
        self.cuda_graph_engine = inner.cuda_graph_engine
        self.past_names = inner.past_names
        self.past_token_bytes = inner.past_token_bytes

    def run(
        self, input_ids: Any, attention_mask: Any, outputs: Sequence[str], *, past: Any = None
    ) -> list[Any]:
        return self.inner.run(input_ids, attention_mask, outputs, past=past)

    def release_after_fork(self) -> None:
        self.inner.release_after_fork()


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed ``bge.json`` in place."""
    path = bundle / "bge.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file, and its size and hash in ``bge.json``."""
    (bundle / name).write_bytes(content)

    def change(data: dict[str, Any]) -> None:
        data["files"][name] = {
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    edit_manifest(bundle, change)


def scramble_reference(bundle: Path) -> None:
    """Swap the vectors of the bundle's parity texts."""
    with np.load(bundle / "parity.npz") as data:
        arrays = dict(data)
    arrays["vectors"] = np.roll(arrays["vectors"], 1, axis=0)
    np.savez(bundle / "parity.npz", **arrays)
    replace_file(bundle, "parity.npz", (bundle / "parity.npz").read_bytes())
