"""Rerankers: models that read a query and a passage together, and score how well they fit.

`FlagReranker` is an encoder, `FlagLLMReranker` a decoder; both have ``compute_score`` as
FlagEmbedding's, and ``rerank``. serving, cli and integrations import from here.
"""

from bge_runtime.rerankers.auto import AnyReranker, FlagAutoReranker, check_reranker
from bge_runtime.rerankers.base import BaseReranker, RankedPassage, sigmoid
from bge_runtime.rerankers.decoder import FlagLLMReranker
from bge_runtime.rerankers.encoder import FlagReranker
from bge_runtime.rerankers.parts import PairPlan, RerankerParts

__all__ = [
    "AnyReranker",
    "BaseReranker",
    "FlagAutoReranker",
    "FlagLLMReranker",
    "FlagReranker",
    "PairPlan",
    "RankedPassage",
    "RerankerParts",
    "check_reranker",
    "sigmoid",
]
