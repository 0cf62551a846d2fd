"""From windows of texts to columns of vectors: the model, its pipeline, and Arrow arrays."""

from bge_runtime.bulk.vectors.encoder import PreparedWindow, TextEncoder
from bge_runtime.bulk.vectors.model import ModelDescription, describe_model, open_encoder
from bge_runtime.bulk.vectors.outputs import (
    colbert_array,
    dense_array,
    output_fields,
    sparse_array,
)
from bge_runtime.bulk.vectors.pipeline import Pipeline

__all__ = [
    "ModelDescription",
    "Pipeline",
    "PreparedWindow",
    "TextEncoder",
    "colbert_array",
    "dense_array",
    "describe_model",
    "open_encoder",
    "output_fields",
    "sparse_array",
]
