"""FlagEmbedding's classes: what users open and call.

`DenseEmbedder` in ``dense.py`` and `BGEM3FlagModel` in ``m3.py`` have the ``encode`` methods;
`BaseEmbedder` in ``base.py`` opens the bundle. cli, integrations and `bge_runtime` itself import
from here.
"""

from bge_runtime.models.auto import AnyFlagModel, FlagAutoModel
from bge_runtime.models.decoder import PREFIX_CACHE_MB
from bge_runtime.models.encoder import FlagModel
from bge_runtime.models.icl import FlagICLModel
from bge_runtime.models.instructions import (
    check_format,
    choose_query_instruction,
    join_instruction,
)
from bge_runtime.models.llm import FlagLLMModel
from bge_runtime.models.m3 import BGEM3FlagModel
from bge_runtime.models.opened import OpenedModel
from bge_runtime.models.options import DEFAULT_LENGTH, Devices, OpenOptions, precision_of_flags
from bge_runtime.models.parts import ModelParts, TextKind

__all__ = [
    "DEFAULT_LENGTH",
    "PREFIX_CACHE_MB",
    "AnyFlagModel",
    "BGEM3FlagModel",
    "Devices",
    "FlagAutoModel",
    "FlagICLModel",
    "FlagLLMModel",
    "FlagModel",
    "ModelParts",
    "OpenOptions",
    "OpenedModel",
    "TextKind",
    "check_format",
    "choose_query_instruction",
    "join_instruction",
    "precision_of_flags",
]
