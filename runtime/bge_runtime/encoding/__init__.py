"""Encode texts: tokens, batches, engines, outputs. `encode` is the path that every call takes.

Nothing here knows a model class; `bge_runtime.models` and `bge_runtime.m3` build on it.
"""

from bge_runtime.encoding.batching import MAX_PADDED_TOKENS
from bge_runtime.encoding.dense_vectors import DenseVectors
from bge_runtime.encoding.engine_set import EngineSet, EngineSetOptions
from bge_runtime.encoding.pairs import PairEncoder, PairTokenizer, PromptTokenizer
from bge_runtime.encoding.parallel import MAX_STREAM_TOKENS
from bge_runtime.encoding.pipeline import (
    Batch,
    BatchCall,
    EncodingPlan,
    TokenizationPlan,
    batch_tokens,
    compute_batch,
    encode,
    halve_batch,
    progress_bar,
    share_batches,
)
from bge_runtime.encoding.postprocess import (
    find_not_finite,
    normalize,
    round_vectors,
    truncate,
)
from bge_runtime.encoding.prefix_cache import PrefixCache
from bge_runtime.encoding.tokenization import TextTokenizer, TokenPlaces, special_tokens_around
from bge_runtime.encoding.validation import (
    as_pairs,
    as_text,
    as_text_list,
    as_texts,
    check_positive,
    check_unicode,
    list_items,
    resolve_devices,
    type_name,
)

__all__ = [
    "MAX_PADDED_TOKENS",
    "MAX_STREAM_TOKENS",
    "Batch",
    "BatchCall",
    "DenseVectors",
    "EncodingPlan",
    "EngineSet",
    "EngineSetOptions",
    "PairEncoder",
    "PairTokenizer",
    "PrefixCache",
    "PromptTokenizer",
    "TextTokenizer",
    "TokenPlaces",
    "TokenizationPlan",
    "as_pairs",
    "as_text",
    "as_text_list",
    "as_texts",
    "batch_tokens",
    "check_positive",
    "check_unicode",
    "compute_batch",
    "encode",
    "find_not_finite",
    "halve_batch",
    "list_items",
    "normalize",
    "progress_bar",
    "resolve_devices",
    "round_vectors",
    "share_batches",
    "special_tokens_around",
    "truncate",
    "type_name",
]
