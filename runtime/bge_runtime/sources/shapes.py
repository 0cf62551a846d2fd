"""Sizes of models, for export with random weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """The size of a BERT or XLM-RoBERTa encoder.

    Attributes:
        layers: Number of transformer layers.
        hidden_size: Width of the hidden states.
        heads: Attention heads per layer.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Rows of the word-embedding table.
        architecture: ``model_type`` of its configuration.
        max_length: Most tokens of an input.
    """

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int
    architecture: str = "bert"
    max_length: int = 512


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The size of a decoder. Other settings are the defaults of transformers.

    Attributes:
        architecture: ``model_type`` of its configuration.
        layers: Number of transformer layers.
        hidden_size: Width of the hidden states.
        heads: Query heads per layer.
        kv_heads: Key and value heads per layer.
        head_dim: Width of a head.
        intermediate_size: Width of the feed-forward layer.
        vocab_size: Rows of the word-embedding table.
        max_length: Most tokens of an input.
        rope_theta: Base of the rotary frequencies.
        rms_norm_eps: Added to the mean square in each norm.
        causal: Whether a token attends only to those before it.
    """

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_length: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    causal: bool = True


BERT_SHAPES = {
    "small-en": BertShape(
        layers=12, hidden_size=384, heads=12, intermediate_size=1536, vocab_size=30522
    ),
    "base-en": BertShape(
        layers=12, hidden_size=768, heads=12, intermediate_size=3072, vocab_size=30522
    ),
    "large-en": BertShape(
        layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=30522
    ),
    "small-zh": BertShape(
        layers=4, hidden_size=512, heads=8, intermediate_size=2048, vocab_size=21128
    ),
    "base-zh": BertShape(
        layers=12, hidden_size=768, heads=12, intermediate_size=3072, vocab_size=21128
    ),
    "large-zh": BertShape(
        layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=21128
    ),
}
"""Sizes of BGE's BERT models, by the part of the name that says it."""

XLM_ROBERTA_BASE = BertShape(
    layers=12, hidden_size=768, heads=12, intermediate_size=3072, vocab_size=250002,
    architecture="xlm-roberta",
)  # fmt: skip
XLM_ROBERTA_LARGE = BertShape(
    layers=24, hidden_size=1024, heads=16, intermediate_size=4096, vocab_size=250002,
    architecture="xlm-roberta",
)  # fmt: skip
MINILM = BertShape(layers=6, hidden_size=384, heads=12, intermediate_size=1536, vocab_size=30522)
"""The size of ms-marco-MiniLM-L6-v2."""

MISTRAL_7B = DecoderShape(
    architecture="mistral", layers=32, hidden_size=4096, heads=32, kv_heads=8, head_dim=128,
    intermediate_size=14336, vocab_size=32000, max_length=32768, rms_norm_eps=1e-5,
)  # fmt: skip
GEMMA_2B = DecoderShape(
    architecture="gemma", layers=18, hidden_size=2048, heads=8, kv_heads=1, head_dim=256,
    intermediate_size=16384, vocab_size=256000, max_length=8192,
)  # fmt: skip
GEMMA2_9B = DecoderShape(
    architecture="gemma2", layers=42, hidden_size=3584, heads=16, kv_heads=8, head_dim=256,
    intermediate_size=14336, vocab_size=256002, max_length=8192,
)  # fmt: skip
QWEN2_7B = DecoderShape(
    architecture="qwen2", layers=28, hidden_size=3584, heads=28, kv_heads=4, head_dim=128,
    intermediate_size=18944, vocab_size=151646, max_length=131072, rope_theta=1e6, causal=False,
)  # fmt: skip
QWEN3_06B = DecoderShape(
    architecture="qwen3", layers=28, hidden_size=1024, heads=16, kv_heads=8, head_dim=128,
    intermediate_size=3072, vocab_size=151669, max_length=32768, rope_theta=1e6,
)  # fmt: skip
