"""A decoder's vectors from PyTorch, one layer in memory at a time.

transformers' own model is made without weights, and each layer gets its own for as long as
it runs: the reference for a model of 37 GB is computed with one layer of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModel

from bge_export.checkpoint import Checkpoint
from bge_export.decoder_config import DecoderConfig
from bge_export.weights import SafetensorsReader
from bge_runtime.batching import pad_batch
from bge_runtime.errors import ExportError


@torch.no_grad()
def decoder_reference(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    reader: SafetensorsReader,
    found: dict[str, str],
    token_ids: Sequence[NDArray[np.int64]],
) -> NDArray[np.float32]:
    """Compute the last token's vector of each text in fp32, not normalised.

    With eager attention: transformers 4.57 takes another one for Gemma 2 by default, which
    leaves its softcapping out.

    Args:
        checkpoint: The checkpoint.
        config: What its ``config.json`` says.
        reader: Its weights.
        found: Where they are, as `bge_export.decoder_weights.find_weights` says.
        token_ids: Tokens of each text, special tokens included.

    Returns:
        Shape: ``(texts, hidden_size)``.

    Raises:
        ExportError: If transformers cannot make or run the model.
    """
    try:
        model = _without_weights(checkpoint)
        ids, mask = pad_batch(token_ids, pad_token_id=0)
        # Only the rows that are looked up.
        used, positions = np.unique(ids, return_inverse=True)
        rows = [reader.read(found["embed_tokens"], first=int(row), rows=1) for row in used]
        table = _tensor(np.concatenate(rows))
        model.embed_tokens = _Embedding(model.embed_tokens, table)
        model.norm.load_state_dict({"weight": _tensor(reader.read(found["norm"]))}, assign=True)
        for number, layer in enumerate(model.layers):
            _lend_weights(layer, reader, found["embed_tokens"], number)
        hidden = model(
            input_ids=torch.from_numpy(positions.reshape(ids.shape).astype(np.int64)),
            attention_mask=_mask(config, torch.from_numpy(mask)),
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
        raise ExportError(f"PyTorch itself gives NaN or infinity for {checkpoint.name}")
    return vectors


class _Embedding(torch.nn.Module):
    """A lookup in a few rows; scales as the module that it stands in for, if that does."""

    def __init__(self, original: Any, table: torch.Tensor) -> None:
        super().__init__()
        scale = getattr(original, "scalar_embed_scale", None)
        self.table = table if scale is None else table * scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids]


def _without_weights(checkpoint: Checkpoint) -> Any:
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    config.dtype = torch.float32
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        model = AutoModel.from_config(config, attn_implementation="eager")
    # Its frequencies are computed when it is made, not loaded.
    model.rotary_emb = type(model.rotary_emb)(config=config)
    return model.float().eval()


def _lend_weights(layer: Any, reader: SafetensorsReader, table: str, number: int) -> None:
    prefix = f"{table.removesuffix('embed_tokens.weight')}layers.{number}."

    def lend(module: Any, *_: object) -> None:
        state = {name: _tensor(reader.read(prefix + name)) for name, _ in module.named_parameters()}
        module.load_state_dict(state, assign=True)

    def take_back(module: Any, *_: object) -> None:
        module.to("meta")

    layer.register_forward_pre_hook(lend)
    layer.register_forward_hook(take_back)


def _mask(config: DecoderConfig, mask: torch.Tensor) -> Any:
    if config.causal:
        return mask
    # Ready-made, it is taken as it is; 4.57 would make a causal one whatever the
    # configuration says.
    low = torch.finfo(torch.float32).min
    seen = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1).bool()
    return torch.zeros(seen.shape).masked_fill(~seen, low)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))
