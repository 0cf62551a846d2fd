"""Run BGE embedding models in production: FlagEmbedding's interface, no PyTorch."""

from bge_runtime.auto_model import FlagAutoModel
from bge_runtime.bundle import Bundle
from bge_runtime.flag_model import FlagModel
from bge_runtime.icl_model import FlagICLModel
from bge_runtime.llm_model import FlagLLMModel
from bge_runtime.m3_model import BGEM3FlagModel

__all__ = [
    "BGEM3FlagModel",
    "Bundle",
    "FlagAutoModel",
    "FlagICLModel",
    "FlagLLMModel",
    "FlagModel",
    "__version__",
]

__version__ = "0.1.0"
