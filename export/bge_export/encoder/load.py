"""Load a checkpoint's encoder and heads, or a reranker, with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_export.checkpoint import Checkpoint, check_finite
from bge_export.encoder.pooling import LastLayer
from bge_export.encoder.weights import check_encoder, is_own_code, restore_buffers
from bge_export.library_output import hide_transformers_output, shorten
from bge_runtime.errors import ExportError
from bge_runtime.sources import HEAD_FILES


def load_encoder(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Load an encoder in fp32, on the CPU.

    Raises:
        ExportError: If the weights cannot be read, or are not those that the configuration
            calls for.
    """
    return _load(AutoModel, checkpoint, trust_remote_code=trust_remote_code, reranker=False)


def load_reranker(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Load a sequence classifier in fp32, on the CPU.

    Raises:
        ExportError: As `load_encoder`.
    """
    kind = AutoModelForSequenceClassification
    return _load(kind, checkpoint, trust_remote_code=trust_remote_code, reranker=True)


def find_scorer(reranker: Any, *, source: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a reranker's encoder, and what makes the logit from the vector of [CLS].

    RoBERTa's classifier has a hidden layer of its own; BERT's follows the encoder's pooler. The
    parity gate compares the result with the whole reranker.

    Raises:
        ExportError: If its head is another one.
    """
    encoder: Any = getattr(reranker, reranker.base_model_prefix, None)
    head = getattr(reranker, "classifier", None)
    pooler = getattr(encoder, "pooler", None)
    if isinstance(getattr(head, "dense", None), torch.nn.Linear) and hasattr(head, "out_proj"):
        layers = [head.dense, torch.nn.Tanh(), LastLayer(head.out_proj)]  # type: ignore[union-attr]
    elif isinstance(head, torch.nn.Linear) and isinstance(
        getattr(pooler, "dense", None), torch.nn.Linear
    ):
        layers = [pooler.dense, pooler.activation, LastLayer(head)]  # type: ignore[union-attr]
    else:
        raise ExportError(
            f"{source} scores a pair with a {type(head).__name__} after the encoder; this version "
            "exports rerankers with the classifier of BERT (a pooler and one layer) or RoBERTa "
            "(two layers)"
        )
    return encoder, torch.nn.Sequential(*layers)


def _load(
    kind: Any, checkpoint: Checkpoint, *, trust_remote_code: bool, reranker: bool
) -> torch.nn.Module:
    try:
        with hide_transformers_output():
            loaded = kind.from_pretrained(
                checkpoint.folder,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                # Shapes are compared in check_encoder: version 5 does not name those that differ.
                ignore_mismatched_sizes=True,
                weights_only=True,
            )
    except Exception as error:  # a configuration may fail in any part of transformers
        for name in checkpoint.weight_files:
            if name not in HEAD_FILES and not name.endswith(".safetensors"):
                _load_tensors(checkpoint.folder / name)
        raise ExportError(
            f"transformers cannot load {checkpoint.source}: {type(error).__name__}: "
            f"{shorten(error)}"
        ) from error
    if not isinstance(loaded, tuple):
        raise ExportError(
            f"the code of {checkpoint.source} loads its weights in its own way and does not report "
            "which it left out (output_loading_info), so its outputs could be wrong"
        )
    encoder = _freeze(loaded[0])
    if is_own_code(encoder):
        restore_buffers(encoder)
    check_encoder(encoder, checkpoint, loaded[1], reranker=reranker)
    return encoder


def load_heads(checkpoint: Checkpoint, *, width: int) -> dict[str, torch.nn.Linear]:
    """Load M3's heads in fp32.

    Args:
        checkpoint: The checkpoint.
        width: Width of the encoder's hidden states.

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
        state = _load_tensors(path)
        try:
            weight, bias = state["weight"].float(), state["bias"].float()
        except (LookupError, TypeError, AttributeError) as error:
            raise ExportError(
                f"cannot read {path}: it does not hold the weight and bias of one layer"
            ) from error
        if others := sorted(map(str, set(state) - {"weight", "bias"})):
            raise ExportError(
                f"{path} holds {', '.join(others[:3])} in addition to the weight and bias of one "
                "layer, and token weights and vectors would be computed without them"
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


def _load_tensors(path: Path) -> Any:
    """Load a file of pickled tensors that contains nothing else.

    Raises:
        ExportError: If the file is damaged, or contains anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch, zipfile and pickle raise different classes
        raise ExportError(
            f"cannot read {path}: it is damaged, or a pickle that holds more than tensors and may "
            "run code, which an export never does. Download it again; or, where you trust it, load "
            "it there and save the tensors with safetensors (as save_pretrained does)"
        ) from error


def max_length(encoder: torch.nn.Module) -> int:
    """Return the number of tokens that an encoder has positions for."""
    config: Any = encoder.config
    padding = find_padding_position(encoder)
    return int(config.max_position_embeddings) - (0 if padding is None else padding + 1)


def find_padding_position(encoder: torch.nn.Module) -> int | None:
    """Return the row of padding in an encoder's position table; None if there is none.

    RoBERTa counts positions from there on and skips padding (code of arXiv:1907.11692).
    """
    config: Any = encoder.config
    roberta = config.model_type in ("roberta", "xlm-roberta")
    return int(config.pad_token_id) if roberta else None


def has_token_types(encoder: torch.nn.Module) -> bool:
    """Return whether an encoder has more than one token type."""
    return int(getattr(encoder.config, "type_vocab_size", 0) or 0) > 1


def _freeze(model: Any) -> torch.nn.Module:
    encoder: torch.nn.Module = model.eval().float()
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    return encoder
