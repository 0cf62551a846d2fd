"""Run BGE embedding models in production: FlagEmbedding's interface, no PyTorch."""

from bge_runtime._version import __version__
from bge_runtime.bundle import Bundle
from bge_runtime.models import BGEM3FlagModel, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel

__all__ = [
    "BGEM3FlagModel",
    "Bundle",
    "FlagAutoModel",
    "FlagICLModel",
    "FlagLLMModel",
    "FlagModel",
    "__version__",
]
