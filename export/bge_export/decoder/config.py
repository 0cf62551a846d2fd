"""Read a decoder's ``config.json`` into one description for all families.

Defaults and meanings are those of transformers' configuration classes (4.57), by family in
`_FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_runtime.errors import ExportError
from bge_runtime.sources import DECODERS


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The settings of a decoder-only transformer that its vectors depend on.

    Attributes:
        family: ``model_type``, one of `bge_runtime.sources.DECODERS`.
        layers: Number of transformer layers.
        hidden_size: Width of the hidden states.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer; each serves ``heads / kv_heads`` queries.
        head_dim: Width of a head.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Rows of the embedding table.
        max_length: Most tokens that it reads.
        rms_norm_eps: Added to the mean square in each norm.
        rope_theta: Base of the rotary frequencies (arXiv:2104.09864).
        activation: Activation of the gate: ``"silu"`` or ``"gelu_tanh"``.
        windows: For each layer the number of tokens that a query sees, including its own; None for
            all tokens before it.
        softcap: Bound to which attention scores are softcapped; None for no softcapping.
        query_scale: Factor of the scores.
        embed_scale: Factor of the embeddings.
        norm_offset: Added to the weights of norms: 1 for Gemma, which stores the difference.
        post_norms: Whether attention and feed-forward layer are followed by norms, as in Gemma 2.
        query_key_norms: Whether queries and keys have norms, as in Qwen3.
        qkv_bias: Whether queries, keys and values have biases.
        output_bias: Whether attention's output has a bias.
        causal: Whether a token sees only those before it.
        tied_head: Whether the head of the language model is the embedding table.
        logit_softcap: Bound to which that head's logits are softcapped; None for no softcapping.
    """

    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_length: int
    rms_norm_eps: float
    rope_theta: float
    activation: str
    windows: tuple[int | None, ...]
    softcap: float | None
    query_scale: float
    embed_scale: float
    norm_offset: float
    post_norms: bool
    query_key_norms: bool
    qkv_bias: bool
    output_bias: bool
    causal: bool
    tied_head: bool
    logit_softcap: float | None

    @classmethod
    def from_json(cls, config: Mapping[str, Any], *, source: str) -> DecoderConfig:
        """Read a ``config.json``.

        Raises:
            ExportError: If it is of another family, lacks a size, or has a setting that the graphs
                here do not support, such as scaled rotary frequencies.
        """
        family = config.get("model_type")
        if family not in _FAMILIES:
            raise ExportError(
                f"{source} is of type {family!r}; this version exports decoders of type "
                f"{', '.join(DECODERS)}"
            )
        own = {**_FAMILIES[family], **config}
        try:
            return cls._read(str(family), own, source)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ExportError(
                f"the config.json of {source} is incomplete or damaged "
                f"({type(error).__name__}: {error})"
            ) from error

    @classmethod
    def _read(cls, family: str, own: Mapping[str, Any], source: str) -> DecoderConfig:
        heads, hidden_size = int(own["num_attention_heads"]), int(own["hidden_size"])
        head_dim = int(own.get("head_dim") or hidden_size // heads)
        kv_heads = int(own.get("num_key_value_heads") or heads)
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads do not share {kv_heads} key heads evenly")
        causal = own.get("is_causal", True) is not False
        windows = _read_windows(own)
        if any(windows) and not causal:
            raise ExportError(f"{source} attends in both directions and within a window at once")
        scale = own.get("query_pre_attn_scalar") or head_dim
        gemma = family.startswith("gemma")
        return cls(
            family=family,
            layers=int(own["num_hidden_layers"]),
            hidden_size=hidden_size,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=int(own["intermediate_size"]),
            vocab_size=int(own["vocab_size"]),
            max_length=int(own["max_position_embeddings"]),
            rms_norm_eps=float(own["rms_norm_eps"]),
            rope_theta=_read_rope_theta(own, source),
            activation=_read_activation(own, source),
            windows=windows,
            softcap=_read_cap(own.get("attn_logit_softcapping")),
            query_scale=float(scale) ** -0.5,
            embed_scale=hidden_size**0.5 if gemma else 1.0,
            norm_offset=1.0 if gemma else 0.0,
            post_norms=family == "gemma2",
            query_key_norms=family == "qwen3",
            qkv_bias=bool(own.get("attention_bias", False)),
            output_bias=bool(own.get("attention_bias", False)) and family != "qwen2",
            causal=causal,
            tied_head=bool(own["tie_word_embeddings"]),
            logit_softcap=_read_cap(own.get("final_logit_softcapping")),
        )  # fmt: skip


_FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "gemma": {
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "gemma2": {
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "final_logit_softcapping": 30.0,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "hidden_act": "silu",
        "num_key_value_heads": 32,
        "attention_bias": True,  # its configuration has no such key
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "hidden_act": "silu",
        "num_key_value_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
"""Defaults of each configuration class."""

LEGACY_GEMMA_ACTIVATION, GEMMA_ACTIVATION = "gelu", "gelu_pytorch_tanh"
"""What the first checkpoints of Gemma call their activation, and what it is. Of transformers,
4.48 to 4.57 compute the first, versions before and after the second."""

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def _read_cap(value: Any) -> float | None:
    return None if value is None else float(value)


def _read_windows(own: Mapping[str, Any]) -> tuple[int | None, ...]:
    count, window = int(own["num_hidden_layers"]), own.get("sliding_window")
    family = own["model_type"]
    if unknown := set(own.get("layer_types") or ()) - {"sliding_attention", "full_attention"}:
        raise ValueError(f"layers of type {min(unknown)!r}, which graphs here do not have")
    if window is None or family == "gemma":
        return (None,) * count
    if family.startswith("qwen") and not own.get("use_sliding_window", False):
        return (None,) * count
    if (kinds := own.get("layer_types")) is not None and family != "mistral":
        slides = [kind == "sliding_attention" for kind in kinds]
        if len(slides) != count:
            raise ValueError(f"{len(slides)} layer_types for {count} layers")
    elif family == "gemma2":
        slides = [layer % 2 == 0 for layer in range(count)]
    elif family == "mistral":
        slides = [True] * count
    else:
        slides = [layer >= int(own["max_window_layers"]) for layer in range(count)]
    return tuple(int(window) if slide else None for slide in slides)


def _read_rope_theta(own: Mapping[str, Any], source: str) -> float:
    # transformers 5 writes one object, version 4 two keys.
    rope = {**(own.get("rope_scaling") or {}), **(own.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ExportError(
            f"{source} scales its rotary frequencies ({kind!r} in its config.json), which "
            "graphs here do not do; vectors without it would be wrong"
        )
    return float(own.get("rope_theta") or rope.get("rope_theta") or 10000.0)


def _read_activation(own: Mapping[str, Any], source: str) -> str:
    name = own.get("hidden_activation") if own["model_type"] == "gemma2" else own["hidden_act"]
    if own["model_type"] == "gemma" and name == LEGACY_GEMMA_ACTIVATION:
        name = own.get("hidden_activation") or GEMMA_ACTIVATION
    if name not in _ACTIVATIONS:
        raise ExportError(
            f"{source} has the activation {name!r}; graphs here have {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[str(name)]
