"""Write checkpoints with random weights: an architecture without its training.

The command line and the benchmarks use it. It imports torch, which takes seconds.
"""

from bge_export.synthetic.encoder import find_random_model, write_random_checkpoint

__all__ = [
    "find_random_model",
    "write_random_checkpoint",
]
