"""Read a checkpoint: what it is, its settings, its weights.

`bge_export.checkpoint.tokenizer` imports transformers, so it is imported by its own name.
"""

from bge_export.checkpoint.inspect import (
    Checkpoint,
    check_tokenizer_files,
    find_checkpoint,
    inspect_checkpoint,
)
from bge_export.checkpoint.safetensors import (
    SafetensorsReader,
    TensorPlan,
    Transform,
    check_finite,
    external_tensors,
    identity,
    total_bytes,
    weight_dtype,
    write_external_data,
)
from bge_export.checkpoint.sentence_transformers import settle, write_folder
from bge_export.checkpoint.weight_names import is_unused, match_weights, require_match

__all__ = [
    "Checkpoint",
    "SafetensorsReader",
    "TensorPlan",
    "Transform",
    "check_finite",
    "check_tokenizer_files",
    "external_tensors",
    "find_checkpoint",
    "identity",
    "inspect_checkpoint",
    "is_unused",
    "match_weights",
    "require_match",
    "settle",
    "total_bytes",
    "weight_dtype",
    "write_external_data",
    "write_folder",
]
