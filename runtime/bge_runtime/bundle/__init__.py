"""The bundle: the folder that bge-export writes and the runtime opens.

It holds the manifest, names of graph inputs and outputs, and the parity between vectors. Used by
all folders above it, and by bge_export and bge_bench.
"""

from bge_runtime.bundle.bundle import PARITY_FILE, TOKENIZER_FILE, Bundle
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
    parse_parity,
)
from bge_runtime.bundle.parity import TOLERANCES, Parity, compare
from bge_runtime.bundle.reference import COLBERT_TOKENS, PairReference, Reference
from bge_runtime.bundle.score_parity import SCORE_TOLERANCES, ScoreParity, compare_scores

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
    "SCORE_TOLERANCES",
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
    "PairReference",
    "Parity",
    "Provenance",
    "Reference",
    "Requirement",
    "RerankerPrompt",
    "ScoreParity",
    "SentenceTransformersSettings",
    "Variant",
    "compare",
    "compare_scores",
    "explain_adapter",
    "explain_no_model",
    "is_model",
    "parse_parity",
    "past_names",
    "past_names_of",
    "present_name",
    "present_names",
]
