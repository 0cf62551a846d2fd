"""TODO."""

from bge_export.checkpoint.inspect import (
    Checkpoint,
    check_tokenizer_files,
    find_checkpoint,
    inspect_checkpoint,
)
from bge_export.checkpoint.safetensors import (
    Plan,
    SafetensorsReader,
    Transform,
    check_finite,
    external_tensors,
    identity,
    total_bytes,
    weight_dtype,
    write_external_data,
)
from bge_export.checkpoint.sentence_transformers import settle, write_folder
from bge_export.checkpoint.tokenizer import (
    CheckpointTokenizer,
    check_token_types,
    check_vocabulary,
    load_tokenizer,
)
from bge_export.checkpoint.weight_names import is_unused, match_weights, require_match

__all__ = [
    "Checkpoint",
    "CheckpointTokenizer",
    "Plan",
    "SafetensorsReader",
    "Transform",
    "check_finite",
    "check_token_types",
    "check_tokenizer_files",
    "check_vocabulary",
    "external_tensors",
    "find_checkpoint",
    "identity",
    "inspect_checkpoint",
    "is_unused",
    "load_tokenizer",
    "match_weights",
    "require_match",
    "settle",
    "total_bytes",
    "weight_dtype",
    "write_external_data",
    "write_folder",
]
