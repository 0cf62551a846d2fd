"""TODO."""

from bge_export.synthetic.encoder import random_model_facts, write_random_checkpoint

__all__ = [
    "random_model_facts",
    "write_random_checkpoint",
]
