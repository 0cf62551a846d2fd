"""The models of a server: from the texts of a request to their vectors or scores.

`ServedModel` in ``base.py`` is what all have: engines, tokenizing threads, admission to the queue,
and the way of a request through it. `ServedEmbedder` and `ServedReranker` know what comes in and
goes out, and `ModelSet` which model a request is for.
"""

from bge_runtime.serving.models.base import ServedModel
from bge_runtime.serving.models.embedder import Embedded, Inputs, ServedEmbedder
from bge_runtime.serving.models.model_set import ModelSet
from bge_runtime.serving.models.reranker import Ranked, ServedReranker

__all__ = [
    "Embedded",
    "Inputs",
    "ModelSet",
    "Ranked",
    "ServedEmbedder",
    "ServedModel",
    "ServedReranker",
]
