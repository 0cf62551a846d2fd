"""Find a checkpoint, check it, and read its settings, tokenizer and weights.

Both exporters and the command line use it. `bge_export.checkpoint.tokenizer` imports transformers,
which is slow, so its names are not handed on here.
"""

from bge_export.checkpoint.files import check_tokenizer_files
from bge_export.checkpoint.find import find_checkpoint
from bge_export.checkpoint.inspect import Checkpoint, inspect_checkpoint
from bge_export.checkpoint.safetensors import SafetensorsReader, check_finite, find_common_dtype
from bge_export.checkpoint.sentence_transformers_keys import (
    MODULES_FILE,
    POOLING_MODES,
    PROMPTS_FILE,
    TRANSFORMER_FILES,
)
from bge_export.checkpoint.weight_names import is_unused, match_weights, require_match

__all__ = [
    "MODULES_FILE",
    "POOLING_MODES",
    "PROMPTS_FILE",
    "TRANSFORMER_FILES",
    "Checkpoint",
    "SafetensorsReader",
    "check_finite",
    "check_tokenizer_files",
    "find_checkpoint",
    "find_common_dtype",
    "inspect_checkpoint",
    "is_unused",
    "match_weights",
    "require_match",
]
