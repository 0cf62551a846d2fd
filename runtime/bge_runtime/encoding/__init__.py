"""TODO."""

from bge_runtime.encoding.batching import balanced_batch_tokens, pad_batch, plan_batches
from bge_runtime.encoding.parallel import ParallelBatches
from bge_runtime.encoding.pipeline import (
    Batch,
    Tokenize,
    first_window_on_gpu,
    run_in_parts,
    share_batches,
    tokenized_windows,
)
from bge_runtime.encoding.postprocess import find_not_finite, normalize, truncate
from bge_runtime.encoding.prefix_cache import PrefixCache
from bge_runtime.encoding.tokenization import TextTokenizer, special_tokens_around
from bge_runtime.encoding.validation import (
    as_pairs,
    as_text,
    as_text_list,
    as_texts,
    check_positive,
    list_items,
    resolve_devices,
    type_name,
)

__all__ = [
    "Batch",
    "ParallelBatches",
    "PrefixCache",
    "TextTokenizer",
    "Tokenize",
    "as_pairs",
    "as_text",
    "as_text_list",
    "as_texts",
    "balanced_batch_tokens",
    "check_positive",
    "find_not_finite",
    "first_window_on_gpu",
    "list_items",
    "normalize",
    "pad_batch",
    "plan_batches",
    "resolve_devices",
    "run_in_parts",
    "share_batches",
    "special_tokens_around",
    "tokenized_windows",
    "truncate",
    "type_name",
]
