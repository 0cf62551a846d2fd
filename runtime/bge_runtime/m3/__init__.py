"""What is particular to BGE-M3: its three outputs, their formats, and scores between them.

`M3Outputs` collects the outputs of a call; models, cli and stores import from here.
"""

from bge_runtime.m3.colbert import (
    colbert_pair_scores,
    colbert_score,
    colbert_vectors,
    padded_in_batches,
)
from bge_runtime.m3.lexical import (
    LexicalRows,
    LexicalWeights,
    as_rows,
    lexical_pair_scores,
    matching_scores,
)
from bge_runtime.m3.outputs import M3Output, M3Outputs, SparseFormat, graph_outputs, score_pairs
from bge_runtime.m3.scoring import checked_weights, combine_scores, dense_pair_scores

__all__ = [
    "LexicalRows",
    "LexicalWeights",
    "M3Output",
    "M3Outputs",
    "SparseFormat",
    "as_rows",
    "checked_weights",
    "colbert_pair_scores",
    "colbert_score",
    "colbert_vectors",
    "combine_scores",
    "dense_pair_scores",
    "graph_outputs",
    "lexical_pair_scores",
    "matching_scores",
    "padded_in_batches",
    "score_pairs",
]
