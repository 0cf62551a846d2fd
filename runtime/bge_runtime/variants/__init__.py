"""Choose the variant of a bundle to run, and measure its parity with PyTorch on this machine.

Used by models, the command line, the exporter and benchmarks; it opens engines, but no models.
"""

from bge_runtime.variants.parity_check import measure_parity, padded_outputs
from bge_runtime.variants.selection import (
    JudgedVariant,
    judge_variants,
    select_cuda_graph_variant,
    select_variant,
)

__all__ = [
    "JudgedVariant",
    "judge_variants",
    "measure_parity",
    "padded_outputs",
    "select_cuda_graph_variant",
    "select_variant",
]
