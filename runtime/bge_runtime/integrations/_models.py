"""What the adapters share: any model, in fp32, and what it gives for queries and passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.auto_model import AnyFlagModel, FlagAutoModel
from bge_runtime.errors import BundleError
from bge_runtime.m3_model import BGEM3FlagModel

_DENSE = {"return_dense": True, "return_sparse": False, "return_colbert_vecs": False}
_SPARSE = {"return_dense": False, "return_sparse": True, "return_colbert_vecs": False}


def open_model(
    model_name: str, *, query_instruction: str | None = None, **options: Any
) -> AnyFlagModel:
    """Open a model with `bge_runtime.FlagAutoModel`, in fp32 unless the options say otherwise.

    Args:
        model_name: As in `bge_runtime.FlagModel`.
        query_instruction: Put before each query. None for the one that the model's authors
            recommend, if there is one; ``""`` for none.
        **options: Those of ``from_finetuned``; and ``device`` for ``devices``, as others
            call it.

    Raises:
        TypeError: If the options hold an instruction for queries as well.
        BgeError: As `bge_runtime.FlagModel`.
    """
    if "device" in options:
        options.setdefault("devices", options.pop("device"))
    # Named here, so that a second one among the options is an error and not lost.
    model = FlagAutoModel.from_finetuned(
        model_name,
        query_instruction_for_retrieval=query_instruction or None,
        **{"use_fp16": False, **options},
    )
    if query_instruction is None:
        model.query_instruction_for_retrieval = model.bundle.manifest.model.query_instruction
    return model


def dense_vectors(
    model: AnyFlagModel, texts: Sequence[str], *, queries: bool = False, **options: Any
) -> NDArray[np.float32]:
    """Embed texts.

    Args:
        model: Any model.
        texts: The texts; may be none.
        queries: Whether they are queries, and not passages.
        **options: Those of ``encode``. Without a ``max_length``, texts are cut where the
            model's reading ends, as in sentence-transformers, not at FlagEmbedding's 512.

    Returns:
        Shape: ``(len(texts), dim)``.
    """
    if isinstance(model, BGEM3FlagModel):
        options.update(_DENSE)
    found = _encode(model, texts, queries, options)
    vectors: NDArray[np.float32] = found["dense_vecs"] if isinstance(found, dict) else found
    return vectors


def lexical_weights(
    model: BGEM3FlagModel, texts: Sequence[str], *, queries: bool = False, **options: Any
) -> list[dict[str, np.float32]]:
    """Weigh the tokens of texts; the arguments are those of `dense_vectors`.

    Returns:
        For each text a dictionary, as `bge_runtime.stores` takes them.
    """
    found = _encode(model, texts, queries, {**options, **_SPARSE})
    weights: list[dict[str, np.float32]] = found["lexical_weights"]
    return weights


def check_m3(model: AnyFlagModel) -> BGEM3FlagModel:
    """Check that a model weighs tokens.

    Raises:
        BundleError: If it does not.
    """
    if not isinstance(model, BGEM3FlagModel):
        facts = model.bundle.manifest.model
        raise BundleError(
            f"{facts.name} is a model of class {facts.model_class}, which weighs no tokens: sparse "
            "vectors are BGE-M3's. Name an M3 model, or embed densely"
        )
    return model


def _encode(
    model: AnyFlagModel, texts: Sequence[str], queries: bool, options: dict[str, Any]
) -> Any:
    if options.get("max_length") is None:
        options["max_length"] = model.bundle.manifest.model.max_length
    encode: Any = model.encode_queries if queries else model.encode_corpus
    return encode(list(texts), **options)


def as_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Turn vectors into Python numbers.

    Row by row: all at once would hold the interpreter, and with it every event loop of the
    process, for as long as it takes.
    """
    return [row.tolist() for row in vectors]
