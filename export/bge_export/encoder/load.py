"""From a checkpoint folder to a PyTorch encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from bge_export.checkpoint import Checkpoint, check_finite
from bge_export.encoder.trace import PooledEncoder
from bge_export.encoder.weights import check_encoder, is_own_code, restore_buffers
from bge_export.quiet import first_lines, quiet
from bge_runtime.errors import ExportError
from bge_runtime.sources import HEAD_FILES


def load_encoder(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Load an encoder in fp32, on the CPU.

    Raises:
        ExportError: If the weights cannot be read, or are not those that the configuration
            calls for.
    """
    try:
        with quiet():
            loaded = AutoModel.from_pretrained(
                checkpoint.folder,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # Shapes are compared here: version 5 says of none which it was.
                ignore_mismatched_sizes=True,
                weights_only=True,
            )
    except Exception as error:  # what a configuration asks for fails anywhere, in any way
        for name in checkpoint.weight_files:
            if name not in HEAD_FILES and not name.endswith(".safetensors"):
                _load_pickle(checkpoint.folder / name)
        raise ExportError(
            f"transformers cannot load {checkpoint.source}: {type(error).__name__}: "
            f"{first_lines(error)}"
        ) from error
    if not isinstance(loaded, tuple):
        raise ExportError(
            f"the code of {checkpoint.source} loads its weights in a way of its own, and does not "
            "say which it left out (output_loading_info), so that vectors could be wrong"
        )
    encoder = _ready(loaded[0])
    if is_own_code(encoder):
        restore_buffers(encoder)
    check_encoder(encoder, checkpoint, loaded[1])
    return encoder


def load_heads(checkpoint: Checkpoint, *, width: int) -> dict[str, torch.nn.Linear]:
    """Load the heads of a model of M3's class, in fp32.

    Args:
        checkpoint: The checkpoint.
        width: Components of the encoder's hidden states.

    Returns:
        ``"sparse"`` and ``"colbert"``; empty for a model without heads.

    Raises:
        ExportError: If a file cannot be read, or does not fit the encoder.
    """
    heads = {}
    for name in HEAD_FILES:
        if name not in checkpoint.weight_files:
            continue
        path = checkpoint.folder / name
        state = _load_pickle(path)
        try:
            weight, bias = state["weight"].float(), state["bias"].float()
        except (LookupError, TypeError, AttributeError) as error:
            raise ExportError(
                f"cannot read {path}: it does not hold the weight and bias of one layer"
            ) from error
        if others := sorted(map(str, set(state) - {"weight", "bias"})):
            raise ExportError(
                f"{path} holds {', '.join(others[:3])} besides the weight and bias of one layer, "
                "and weights and vectors of tokens would be made without"
            )
        for key, tensor in (("weight", weight), ("bias", bias)):
            if not state[key].is_floating_point():
                raise ExportError(f"{key} in {path} is of type {state[key].dtype}, no weight's")
            check_finite(tensor.numpy(), f"{key} in {name}")
        kind = name.removesuffix("_linear.pt")
        rows = 1 if kind == "sparse" or not weight.ndim else len(weight)
        if weight.shape != (rows, width) or bias.shape != (rows,):
            raise ExportError(
                f"{path} is a matrix of {tuple(weight.shape)} with a bias of {tuple(bias.shape)}; "
                f"the encoder's {width} components need ({rows}, {width}) and ({rows},)"
            )
        heads[kind] = torch.nn.Linear(width, rows)
        heads[kind].load_state_dict({"weight": weight, "bias": bias})
        heads[kind].requires_grad_(requires_grad=False)
    return heads


def _load_pickle(path: Path) -> Any:
    """Load pickled tensors, and nothing else that a pickle may hold.

    Raises:
        ExportError: If the file is damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch, zipfile and pickle each have their own, with other advice
        raise ExportError(
            f"cannot read {path}: it is damaged, or a pickle that holds more than tensors and may "
            "run code, which an export never does. Download it again; or, where you trust it, load "
            "it there and save the tensors with safetensors (as save_pretrained does)"
        ) from error


def max_length(encoder: torch.nn.Module) -> int:
    """Count the tokens that an encoder has positions for."""
    config: Any = encoder.config
    padding = padding_position(encoder)
    return int(config.max_position_embeddings) - (0 if padding is None else padding + 1)


def padding_position(encoder: torch.nn.Module) -> int | None:
    """Tell which row of its table of positions an encoder gives to padding; None if to none.

    RoBERTa counts positions from there on, and leaves padding out (arXiv:1907.11692's code).
    """
    config: Any = encoder.config
    roberta = config.model_type in ("roberta", "xlm-roberta")
    return int(config.pad_token_id) if roberta else None


def takes_token_types(encoder: torch.nn.Module) -> bool:
    """Tell whether an encoder has more than one token type."""
    return int(getattr(encoder.config, "type_vocab_size", 0) or 0) > 1


@torch.no_grad()
def reference_vectors(
    encoder: PooledEncoder, token_ids: Sequence[NDArray[np.int64]]
) -> dict[str, list[NDArray[np.float32]]]:
    """Compute PyTorch's outputs, one text at a time, so that nothing is padded.

    Returns:
        By name of the output, one array a text: pooled vectors ``(dim,)``, not
        normalised; of a model with M3's heads also ``(tokens,)`` weights and
        ``(tokens - 1, colbert_dim)`` vectors.
    """
    names = encoder.output_names[1:]
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for ids in token_ids:
        batch = torch.from_numpy(ids)[None]
        _, *outputs = encoder(batch, torch.ones_like(batch), torch.zeros_like(batch))
        for name, output in zip(names, outputs, strict=True):
            rows[name].append(output[0].numpy())
    return rows


def _ready(model: Any) -> torch.nn.Module:
    encoder: torch.nn.Module = model.eval().float()
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    return encoder
