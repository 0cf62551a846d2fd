"""Compute PyTorch's outputs for the parity texts or pairs, which graphs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_export.encoder.pooling import PooledEncoder
from bge_runtime.bundle import (
    COLBERT_TOKENS,
    COLBERT_VECS,
    SECOND_TEXT,
    SENTENCE_EMBEDDING,
    TOKEN_WEIGHTS,
    PairReference,
    Reference,
)
from bge_runtime.errors import ExportError


def compute_reference(
    encoder: PooledEncoder,
    texts: Sequence[str],
    token_ids: Sequence[NDArray[np.int64]],
    *,
    name: str,
) -> Reference:
    """Return PyTorch's vectors of some texts, and M3's other outputs.

    Args:
        encoder: The encoder.
        texts: The texts.
        token_ids: Tokens of each text.
        name: Name of the model, for messages.

    Raises:
        ExportError: If the encoder returns NaN or infinity.
    """
    outputs = compute_outputs(encoder, token_ids)
    reference = Reference(
        texts=tuple(texts),
        token_ids=tuple(token_ids),
        vectors=np.stack(outputs[SENTENCE_EMBEDDING]),
    )
    if encoder.heads:
        kept = [rows for rows in outputs[COLBERT_VECS] if len(rows) < COLBERT_TOKENS]
        reference = replace(
            reference,
            token_weights=np.concatenate(outputs[TOKEN_WEIGHTS]),
            colbert_vecs=np.concatenate(kept),
        )
    if not all(np.isfinite(rows).all() for output in outputs.values() for rows in output):
        raise ExportError(f"PyTorch itself returns NaN or infinity for {name}")
    return reference


@torch.no_grad()
def compute_outputs(
    encoder: PooledEncoder, token_ids: Sequence[NDArray[np.int64]]
) -> dict[str, list[NDArray[np.float32]]]:
    """Return PyTorch's outputs, computed one text at a time, so that nothing is padded.

    Returns:
        By output name, one array for each text: pooled vectors ``(dim,)``, not normalized; with
        M3's heads also weights ``(tokens,)`` and vectors ``(tokens - 1, colbert_dim)``.
    """
    names = encoder.pooled_names
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for ids in token_ids:
        batch = torch.from_numpy(ids)[None]
        _, *outputs = encoder(batch, torch.ones_like(batch), torch.zeros_like(batch))
        for name, output in zip(names, outputs, strict=True):
            rows[name].append(output[0].numpy())
    return rows


@torch.no_grad()
def compute_pair_reference(
    reranker: Any,
    pairs: Sequence[tuple[str, str]],
    token_ids: Sequence[NDArray[np.int64]],
    *,
    max_length: int,
    name: str,
) -> PairReference:
    """Return PyTorch's scores of some pairs, computed one at a time, so that nothing is padded.

    Args:
        reranker: The sequence classifier as transformers loaded it.
        pairs: The pairs.
        token_ids: Tokens of each pair.
        max_length: Tokens to which they were cut.
        name: Name of the model, for messages.

    Raises:
        ExportError: If it returns NaN or infinity, or the same score for all pairs.
    """
    logits = np.empty(len(token_ids), dtype=np.float32)
    for number, row in enumerate(token_ids):
        types, ids = (torch.from_numpy(part)[None] for part in np.divmod(row, SECOND_TEXT))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if types.any():
            inputs["token_type_ids"] = types
        logits[number] = reranker(**inputs, return_dict=True).logits[0, 0].numpy()
    if not np.isfinite(logits).all():
        raise ExportError(f"PyTorch itself returns NaN or infinity for {name}")
    if np.ptp(logits) == 0:
        raise ExportError(f"PyTorch itself gives all pairs the score {logits[0]} for {name}")
    queries, passages = zip(*pairs, strict=True)
    return PairReference(
        queries=queries,
        passages=passages,
        token_ids=tuple(token_ids),
        logits=logits,
        max_length=max_length,
    )
