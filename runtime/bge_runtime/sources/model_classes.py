"""FlagEmbedding's model classes, and the architectures that belong to each.

To support another encoder or decoder architecture, add its ``model_type`` here.
"""

from __future__ import annotations

ENCODER_ONLY_BASE = "encoder-only-base"
ENCODER_ONLY_M3 = "encoder-only-m3"
DECODER_ONLY_BASE = "decoder-only-base"
DECODER_ONLY_ICL = "decoder-only-icl"
DECODER_ONLY_PSEUDO_MOE = "decoder-only-pseudo_moe"

MODEL_CLASSES = (
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    DECODER_ONLY_PSEUDO_MOE,
)
"""The ``model_class`` values of FlagEmbedding."""

RERANKER_ENCODER = "reranker-encoder-only-base"
RERANKER_DECODER = "reranker-decoder-only-base"
RERANKER_LAYERWISE = "reranker-decoder-only-layerwise"
RERANKER_LIGHTWEIGHT = "reranker-decoder-only-lightweight"

RERANKER_CLASSES = (RERANKER_ENCODER, RERANKER_DECODER)
"""Classes of rerankers that this version exports and runs. FlagEmbedding has the same names for
embedders and rerankers; here those of rerankers begin with ``reranker-``."""

OPENED_BY = {
    ENCODER_ONLY_BASE: "FlagModel",
    ENCODER_ONLY_M3: "BGEM3FlagModel",
    DECODER_ONLY_BASE: "FlagLLMModel",
    DECODER_ONLY_ICL: "FlagICLModel",
    RERANKER_ENCODER: "FlagReranker",
    RERANKER_DECODER: "FlagLLMReranker",
}
"""Python class that opens models of each class."""

ENCODER_CLASSES = (ENCODER_ONLY_BASE, ENCODER_ONLY_M3)

DECODER_CLASSES = (DECODER_ONLY_BASE, DECODER_ONLY_ICL)
"""Decoder classes that this version supports."""

SUPPORTED_MODEL_CLASSES = (*ENCODER_CLASSES, *DECODER_CLASSES, *RERANKER_CLASSES)
"""The ``model_class`` values that this version exports and runs."""

ENCODERS = ("bert", "roberta", "xlm-roberta")
"""``model_type`` of encoders that are exported without remote code."""

DECODERS = ("mistral", "gemma", "gemma2", "qwen2", "qwen3")
"""``model_type`` of supported decoders. Exporting them never runs remote code."""

HEAD_FILES = ("sparse_linear.pt", "colbert_linear.pt")
"""Files of M3's sparse and ColBERT heads, next to the encoder."""

POOLING_METHODS = ("cls", "mean", "last_token")
"""Pooling methods of graphs. ``last_token`` is for decoders and M3."""
