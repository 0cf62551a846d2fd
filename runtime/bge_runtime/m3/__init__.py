"""What is particular to BGE-M3: its three outputs, their formats, and scores between them.

`M3Outputs` collects the outputs of a call; models, cli and stores import from here.
"""

from bge_runtime.m3.colbert import (
    colbert_score,
)
from bge_runtime.m3.lexical import (
    LexicalRows,
    LexicalWeights,
    as_rows,
    matching_scores,
)
from bge_runtime.m3.outputs import M3Output, M3Outputs, SparseFormat, graph_outputs, score_pairs
from bge_runtime.m3.scoring import checked_weights, combine_scores

__all__ = [
    "LexicalRows",
    "LexicalWeights",
    "M3Output",
    "M3Outputs",
    "SparseFormat",
    "as_rows",
    "checked_weights",
    "colbert_score",
    "combine_scores",
    "graph_outputs",
    "matching_scores",
    "score_pairs",
]
