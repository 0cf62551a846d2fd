"""The bundle: the folder that bge-export writes and the runtime opens.

It holds the manifest, names of graph inputs and outputs, and the parity between vectors. Used by
all folders above it, and by bge_export and bge_bench.
"""

from bge_runtime.bundle.bundle import COLBERT_TOKENS, PARITY_FILE, TOKENIZER_FILE, Bundle, Reference
from bge_runtime.bundle.folders import ADAPTER_FILE, explain_adapter, explain_no_model, is_model
from bge_runtime.bundle.graph_io import (
    COLBERT_VECS,
    COMPUTE_HEADS,
    CUMULATIVE_LENGTHS,
    HEAD_OUTPUTS,
    LOGITS,
    SECOND_TEXT,
    SENTENCE_EMBEDDING,
    TOKEN_OFFSET,
    TOKEN_WEIGHTS,
    UNIFORM_BATCH,
    UNIFORM_LENGTH,
    past_names,
    past_names_of,
    present_name,
    present_names,
)
from bge_runtime.bundle.manifest import (
    FILE_NAME,
    FORMAT_VERSION,
    File,
    Graph,
    Manifest,
    Model,
    Provenance,
    Requirement,
    RerankerPrompt,
    SentenceTransformersSettings,
    Variant,
)
from bge_runtime.bundle.parity import TOLERANCES, Parity, compare

__all__ = [
    "ADAPTER_FILE",
    "COLBERT_TOKENS",
    "COLBERT_VECS",
    "COMPUTE_HEADS",
    "CUMULATIVE_LENGTHS",
    "FILE_NAME",
    "FORMAT_VERSION",
    "HEAD_OUTPUTS",
    "LOGITS",
    "PARITY_FILE",
    "SECOND_TEXT",
    "SENTENCE_EMBEDDING",
    "TOKENIZER_FILE",
    "TOKEN_OFFSET",
    "TOKEN_WEIGHTS",
    "TOLERANCES",
    "UNIFORM_BATCH",
    "UNIFORM_LENGTH",
    "Bundle",
    "File",
    "Graph",
    "Manifest",
    "Model",
    "Parity",
    "Provenance",
    "Reference",
    "Requirement",
    "RerankerPrompt",
    "SentenceTransformersSettings",
    "Variant",
    "compare",
    "explain_adapter",
    "explain_no_model",
    "is_model",
    "past_names",
    "past_names_of",
    "present_name",
    "present_names",
]
