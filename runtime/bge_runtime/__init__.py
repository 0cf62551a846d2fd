"""Run BGE embedding models and rerankers in production: FlagEmbedding's interface, no PyTorch.

These names are public, as are `bge_runtime.errors`, `bge_runtime.stores` and the modules of
`bge_runtime.integrations`. ``docs/reference/public-names.md`` lists them, and a test compares the
two.
"""

from bge_runtime._version import __version__
from bge_runtime.bundle import Bundle
from bge_runtime.models import BGEM3FlagModel, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel
from bge_runtime.rerankers import FlagAutoReranker, FlagLLMReranker, FlagReranker, RankedPassage

__all__ = [
    "BGEM3FlagModel",
    "Bundle",
    "FlagAutoModel",
    "FlagAutoReranker",
    "FlagICLModel",
    "FlagLLMModel",
    "FlagLLMReranker",
    "FlagModel",
    "FlagReranker",
    "RankedPassage",
    "__version__",
]
