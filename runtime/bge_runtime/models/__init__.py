"""FlagEmbedding's classes: what users open and call.

`DenseEmbedder` in ``dense.py`` and `BGEM3FlagModel` in ``m3.py`` have the ``encode`` methods;
`BaseEmbedder` in ``base.py`` opens the bundle. cli, integrations and `bge_runtime` itself import
from here.
"""

from bge_runtime.models.auto import AnyFlagModel, FlagAutoModel
from bge_runtime.models.encoder import FlagModel
from bge_runtime.models.icl import FlagICLModel
from bge_runtime.models.instructions import choose_query_instruction
from bge_runtime.models.llm import FlagLLMModel
from bge_runtime.models.m3 import BGEM3FlagModel
from bge_runtime.models.parts import ModelParts, TextKind

__all__ = [
    "AnyFlagModel",
    "BGEM3FlagModel",
    "FlagAutoModel",
    "FlagICLModel",
    "FlagLLMModel",
    "FlagModel",
    "ModelParts",
    "TextKind",
    "choose_query_instruction",
]
