"""What the adapters share: any model in fp32, and its dense vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.auto_model import AnyFlagModel, FlagAutoModel
from bge_runtime.m3_model import BGEM3FlagModel

_DENSE_ONLY = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}


def open_model(model_name: str, **options: Any) -> AnyFlagModel:
    """Open a model with `bge_runtime.FlagAutoModel`, in fp32 unless ``options`` say otherwise.

    ``device``, as the ecosystems call it, is understood as ``devices``.
    """
    if "device" in options:
        options.setdefault("devices", options.pop("device"))
    return FlagAutoModel.from_finetuned(model_name, **{"use_fp16": False, **options})


def encode_queries(
    model: AnyFlagModel, texts: Sequence[str], **options: Any
) -> NDArray[np.float32]:
    """Give dense vectors of queries; see `_encode`."""
    return _encode(model, model.encode_queries, texts, options)


def encode_corpus(model: AnyFlagModel, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:
    """Give dense vectors of passages; see `_encode`."""
    return _encode(model, model.encode_corpus, texts, options)


def _encode(
    model: AnyFlagModel, encode: Any, texts: Sequence[str], options: dict[str, Any]
) -> NDArray[np.float32]:
    """Give dense vectors, of a model that gives others besides as of any.

    Texts are cut at ``max_length`` tokens; without it, at what the model can read, as
    sentence-transformers does, and not at FlagEmbedding's 512.

    Returns:
        Shape: ``(len(texts), dim)``.
    """
    if options.get("max_length") is None:
        options["max_length"] = model.bundle.manifest.model.max_length
    if isinstance(model, BGEM3FlagModel):
        options.update(_DENSE_ONLY)
    found = encode(list(texts), **options)
    vectors: NDArray[np.float32] = found["dense_vecs"] if isinstance(found, dict) else found
    return vectors


def as_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Turn vectors into Python numbers.

    Row by row: all at once would hold the interpreter, and with it every event loop of the
    process, for as long as it takes.
    """
    return [row.tolist() for row in vectors]
