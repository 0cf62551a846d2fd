"""Compute a decoder's vectors with PyTorch, one layer in memory at a time.

transformers' own model is created without weights, and its layers share the memory of one. So the
vectors of a model of 37 GB take about a gigabyte of memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel

from bge_export.checkpoint import Checkpoint, SafetensorsReader
from bge_export.decoder.config import (
    GEMMA_ACTIVATION,
    LEGACY_GEMMA_ACTIVATION,
    DecoderConfig,
)
from bge_runtime.engines import pad_batch
from bge_runtime.errors import ExportError


@torch.no_grad()
def compute_vectors(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    reader: SafetensorsReader,
    found: dict[str, str],
    token_ids: Sequence[NDArray[np.int64]],
) -> NDArray[np.float32]:
    """Compute the last token's vector of each text in fp32, not normalized.

    Attention is eager: the default of transformers 4.57 leaves out Gemma 2's softcapping.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        reader: Its weights.
        found: Their names in the checkpoint, from `bge_export.decoder.weights.find_weights`.
        token_ids: Tokens of each text, special tokens included.

    Returns:
        Shape: ``(texts, hidden_size)``.

    Raises:
        ExportError: If transformers cannot create or run the model.
    """
    try:
        model = _create_without_weights(checkpoint)
        ids, mask = pad_batch(token_ids, pad_token_id=0)
        # Only the rows that the texts use.
        used, positions = np.unique(ids, return_inverse=True)
        rows = [reader.read(found["embed_tokens"], first=int(row), rows=1) for row in used]
        table = _to_tensor(np.concatenate(rows))
        model.embed_tokens = _Embedding(model.embed_tokens, table)
        model.norm.load_state_dict({"weight": _to_tensor(reader.read(found["norm"]))}, assign=True)
        _share_weights(list(model.layers), reader, found["embed_tokens"])
        hidden = model(
            input_ids=torch.from_numpy(positions.reshape(ids.shape).astype(np.int64)),
            attention_mask=_make_mask(config, torch.from_numpy(mask)),
            use_cache=False,
        ).last_hidden_state
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ExportError(
            f"transformers cannot run {checkpoint.source}, which the export is compared with: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    last = torch.from_numpy(mask).sum(dim=1) - 1
    vectors: NDArray[np.float32] = hidden[torch.arange(len(ids)), last].numpy()
    if not np.isfinite(vectors).all():
        raise ExportError(f"PyTorch itself returns NaN or infinity for {checkpoint.name}")
    return vectors


class _Embedding(torch.nn.Module):
    """A lookup in a few rows, scaled as in the original module."""

    def __init__(self, original: Any, table: torch.Tensor) -> None:
        super().__init__()
        scale = getattr(original, "scalar_embed_scale", None)
        self.table = table if scale is None else table * scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids]


def _create_without_weights(checkpoint: Checkpoint) -> Any:
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    config.dtype = torch.float32
    if config.model_type == "gemma" and config.hidden_act == LEGACY_GEMMA_ACTIVATION:
        config.hidden_act = GEMMA_ACTIVATION
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        model = AutoModel.from_config(config, attn_implementation="eager")
    # Its frequencies are computed on creation, not loaded.
    model.rotary_emb = type(model.rotary_emb)(config=config)
    return model.float().eval()


def _share_weights(layers: Sequence[Any], reader: SafetensorsReader, table: str) -> None:
    """Make all layers share their parameters, which are filled before each layer runs.

    Allocated and freed for each layer, they would fragment the heap: 0.7 GB for layers of 60 MB.
    """
    shared = {name: torch.empty(p.shape) for name, p in layers[0].named_parameters()}
    prefix = f"{table.removesuffix('embed_tokens.weight')}layers."

    def fill(number: int, *_: object) -> None:
        for name, parameter in shared.items():
            array = reader.read(f"{prefix}{number}.{name}")
            parameter.copy_(_to_tensor(array))

    for number, layer in enumerate(layers):
        layer.load_state_dict(shared, assign=True)
        layer.register_forward_pre_hook(partial(fill, number))


def _make_mask(config: DecoderConfig, mask: torch.Tensor) -> Any:
    if config.causal:
        return mask
    # A complete mask is used as it is. Otherwise 4.57 makes a causal one, whatever the
    # configuration.
    low = torch.finfo(torch.float32).min
    seen = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1).bool()
    return torch.zeros(seen.shape).masked_fill(~seen, low)


def _to_tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))
