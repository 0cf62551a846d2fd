"""Where models come from: folders, the Hugging Face Hub, the cache, and exports on demand.

`find_bundle` is the entry point. To add a published model, add a row to `known_models`; to
support another architecture, add its ``model_type`` to `model_classes`. Used by models, cli,
integrations and bge_export.
"""

from bge_runtime.sources.checkpoint_files import CHECKPOINT_FILES, CHECKPOINT_PICKLES
from bge_runtime.sources.export_subprocess import FOR_PYTHON, WARNING_START, ExportRequest
from bge_runtime.sources.export_targets import Use
from bge_runtime.sources.hub import extract_hub_id, is_hub_id, query_hub
from bge_runtime.sources.hub_errors import format_error, translate_hub_errors
from bge_runtime.sources.identity import identify, is_classifier
from bge_runtime.sources.known_models import MODELS, RERANKERS, ModelSpec, find_model
from bge_runtime.sources.model_classes import (
    DECODER_CLASSES,
    DECODER_ONLY_BASE,
    DECODER_ONLY_ICL,
    DECODER_ONLY_PSEUDO_MOE,
    DECODERS,
    ENCODER_CLASSES,
    ENCODER_ONLY_BASE,
    ENCODER_ONLY_M3,
    ENCODERS,
    HEAD_FILES,
    MODEL_CLASSES,
    OPENED_BY,
    POOLING_METHODS,
    RERANKER_CLASSES,
    RERANKER_DECODER,
    RERANKER_ENCODER,
    RERANKER_LAYERWISE,
    RERANKER_LIGHTWEIGHT,
    SUPPORTED_MODEL_CLASSES,
)
from bge_runtime.sources.reranker_prompts import BGE_QUESTION, RerankerQuestion
from bge_runtime.sources.resolve import find_bundle
from bge_runtime.sources.shapes import BertShape, DecoderShape

__all__ = [
    "BGE_QUESTION",
    "CHECKPOINT_FILES",
    "CHECKPOINT_PICKLES",
    "DECODERS",
    "DECODER_CLASSES",
    "DECODER_ONLY_BASE",
    "DECODER_ONLY_ICL",
    "DECODER_ONLY_PSEUDO_MOE",
    "ENCODERS",
    "ENCODER_CLASSES",
    "ENCODER_ONLY_BASE",
    "ENCODER_ONLY_M3",
    "FOR_PYTHON",
    "HEAD_FILES",
    "MODELS",
    "MODEL_CLASSES",
    "OPENED_BY",
    "POOLING_METHODS",
    "RERANKERS",
    "RERANKER_CLASSES",
    "RERANKER_DECODER",
    "RERANKER_ENCODER",
    "RERANKER_LAYERWISE",
    "RERANKER_LIGHTWEIGHT",
    "SUPPORTED_MODEL_CLASSES",
    "WARNING_START",
    "BertShape",
    "DecoderShape",
    "ExportRequest",
    "ModelSpec",
    "RerankerQuestion",
    "Use",
    "extract_hub_id",
    "find_bundle",
    "find_model",
    "format_error",
    "identify",
    "is_classifier",
    "is_hub_id",
    "query_hub",
    "translate_hub_errors",
]
