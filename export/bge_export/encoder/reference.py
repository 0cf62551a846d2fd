"""Compute PyTorch's vectors of the parity texts, which the graphs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bge_export.encoder.pooling import PooledEncoder
from bge_runtime.bundle import (
    COLBERT_TOKENS,
    COLBERT_VECS,
    SENTENCE_EMBEDDING,
    TOKEN_WEIGHTS,
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
    names = encoder.output_names[1:]
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for ids in token_ids:
        batch = torch.from_numpy(ids)[None]
        _, *outputs = encoder(batch, torch.ones_like(batch), torch.zeros_like(batch))
        for name, output in zip(names, outputs, strict=True):
            rows[name].append(output[0].numpy())
    return rows
