"""TODO."""

from bge_runtime.variants.parity_check import measure, measure_once, padded_vectors
from bge_runtime.variants.selection import select_variant

__all__ = [
    "measure",
    "measure_once",
    "padded_vectors",
    "select_variant",
]
