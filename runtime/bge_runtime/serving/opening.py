"""Open a model as a server needs it."""

from __future__ import annotations

from typing import Any

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import resolve_devices
from bge_runtime.models import AnyFlagModel, FlagAutoModel
from bge_runtime.rerankers import AnyReranker, FlagAutoReranker
from bge_runtime.sources import (
    ENCODER_ONLY_M3,
    RERANKER_CLASSES,
    ExportRequest,
    Use,
    find_bundle,
)


def open_served_model(
    source: str,
    *,
    devices: list[str] | None = None,
    engine: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    query_instruction: str | None = None,
    passage_instruction: str | None = None,
) -> AnyFlagModel | AnyReranker:
    """Open an embedder or a reranker with the instructions and outputs that requests may ask for.

    Args:
        source: A bundle, or a checkpoint's folder or Hub ID; see `bge_runtime.FlagModel`.
        devices: As in `bge_runtime.FlagModel`.
        engine: As in `bge_runtime.FlagModel`.
        precision: As in `bge_runtime.FlagModel`; None for the fastest with verified parity.
        threads: As in `bge_runtime.FlagModel`.
        revision: As in `bge_runtime.FlagModel`.
        query_instruction: Put before queries; None for the one that an embedder's authors
            recommend, ``""`` for none.
        passage_instruction: Put before passages.

    Raises:
        BgeError: If it cannot be opened.
    """
    use = Use(devices=resolve_devices(devices), engine=engine, precision=precision or "auto")
    request = ExportRequest(model_class=None, pooling=None, trust_remote_code=False, use=use)
    folder = find_bundle(source, revision=revision, cache_dir=None, request=request)
    card = Bundle.at(folder).manifest.model
    how: dict[str, Any] = {
        "devices": devices,
        "engine": engine,
        "precision": precision,
        "threads": threads,
    }
    if card.model_class in RERANKER_CLASSES:
        # None would leave out what a decoder is asked with.
        if query_instruction is not None:
            how["query_instruction_for_rerank"] = query_instruction
        if passage_instruction is not None:
            how["passage_instruction_for_rerank"] = passage_instruction
        return FlagAutoReranker.from_finetuned(
            str(folder), **{**how, "precision": precision or "auto"}
        )
    # As FlagEmbedding's documentation has it, M3 is used without instructions.
    with_heads = card.model_class == ENCODER_ONLY_M3
    if query_instruction is None and not with_heads:
        query_instruction = card.query_instruction
    # An engine that is opened for all outputs need not be opened again for a request.
    outputs: dict[str, Any] = {}
    if with_heads:
        outputs = {"return_sparse": True, "return_colbert_vecs": True}
    return FlagAutoModel.from_finetuned(
        str(folder),
        query_instruction_for_retrieval=query_instruction or None,
        passage_instruction_for_retrieval=passage_instruction or None,
        **how,
        **outputs,
    )
