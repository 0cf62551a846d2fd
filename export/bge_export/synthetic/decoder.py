"""Write decoders of any size with random weights, piece by piece."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bge_export.decoder import DecoderConfig, Weight, list_weights
from bge_runtime.sources import DecoderShape

_SHARD_BYTES = 1 << 30
_PIECE_ROWS = 4096


def make_config(shape: DecoderShape, *, answers: bool = False) -> dict[str, Any]:
    """Return the ``config.json`` of a decoder of some shape; see `write_random_decoder`."""
    kind = "ForCausalLM" if answers else "Model"
    config: dict[str, Any] = {
        "architectures": [f"{shape.architecture.capitalize()}{kind}"],
        "model_type": shape.architecture,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_length,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps,
        "torch_dtype": "bfloat16",
        "use_cache": False,
    }
    if answers:
        config["tie_word_embeddings"] = True
    if not shape.causal:
        config["is_causal"] = False
    if shape.architecture in ("mistral", "gemma2"):
        config["sliding_window"] = 4096
    if shape.architecture == "gemma2":
        config |= {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": shape.head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
        }
    else:
        config["hidden_act"] = "gelu_pytorch_tanh" if shape.architecture == "gemma" else "silu"
    return config


def write_random_decoder(
    shape: DecoderShape, folder: Path, *, seed: int, answers: bool = False
) -> None:
    """Write a decoder's configuration, and its weights in bf16 and in shards.

    Args:
        shape: The shape.
        folder: An empty folder.
        seed: Seed of the weights. The same seed gives the same weights.
        answers: Whether it has a language model's head, which is its embedding table.
    """
    document = make_config(shape, answers=answers)
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    config = DecoderConfig.from_json(document, source=shape.architecture)
    prefix = "model." if answers else ""
    # Logits are then about as large as a trained model's.
    spread = 1 / (math.sqrt(shape.hidden_size) if answers else config.embed_scale)
    shards: list[list[tuple[int, Weight]]] = [[]]
    filled = 0
    for number, weight in enumerate(list_weights(config)):
        size = 2 * math.prod(weight.shape)
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((number, weight))
        filled += size
    places: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shard, config, seed, prefix=prefix, embedding_spread=spread)
        places |= {prefix + weight.stem: name for _, weight in shard}
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2), "utf-8")


def _write_shard(
    path: Path,
    shard: list[tuple[int, Weight]],
    config: DecoderConfig,
    seed: int,
    *,
    prefix: str,
    embedding_spread: float,
) -> None:
    header, start = {}, 0
    for _, weight in shard:
        end = start + 2 * math.prod(weight.shape)
        header[prefix + weight.stem] = {
            "dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, end],
        }  # fmt: skip
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number, weight in shard:
            random = np.random.default_rng([seed, number])
            for piece in _draw_weight(weight, config, random, embedding_spread):
                file.write(piece.astype(ml_dtypes.bfloat16).view(np.uint8).data)


def _draw_weight(
    weight: Weight, config: DecoderConfig, random: np.random.Generator, embedding_spread: float
) -> Iterator[NDArray[np.float32]]:
    """Yield a random weight, some rows at a time.

    Each matrix keeps the scale of its input. Queries and keys have a larger spread, so that
    attention prefers some tokens. With twice that spread, Gemma 2's scores come close to their
    softcap, where bf16's steps are a fifth of a unit, and its vectors are off by 14 % of the
    distance between
    texts.
    """
    mean, spread = 0.0, 0.1
    if weight.kind == "norm":
        mean = 1 - config.norm_offset
    elif weight.kind == "embedding":
        spread = embedding_spread
    elif weight.kind == "matrix":
        wide = weight.name.endswith(("q_proj", "k_proj")) and not config.query_key_norms
        spread = (1.5 if wide else 1.0) / math.sqrt(weight.shape[1])
    rows = weight.shape[0]
    for first in range(0, rows, _PIECE_ROWS):
        shape = (min(_PIECE_ROWS, rows - first), *weight.shape[1:])
        yield mean + spread * random.standard_normal(shape, dtype=np.float32)
