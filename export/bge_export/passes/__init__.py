"""Graph passes: they lower the traced graph to the form that each target needs.

The targets and the encoders' export use them. Each pass is one class in its own module. Its
docstring says what it requires and what it changes. It changes the model in place, and a test runs
the graph before and after.

To add a pass: write its module here, in `attention` or in `precision`; export it below; add it to
the passes of the targets that need it, in `bge_export.targets.encoder`; and add its test in the
same place under ``tests/export/passes``.
"""

from bge_export.passes.attention.attention_to_matmul import AttentionToMatMul
from bge_export.passes.attention.blockwise_attention import BlockwiseAttention
from bge_export.passes.attention.broadcast_mask import BroadcastMask
from bge_export.passes.attention.fold_attention_bias import FoldAttentionBias
from bge_export.passes.attention.fold_query_bias import FoldQueryBias
from bge_export.passes.attention.packed_attention import DecomposePackedAttention, PackAttention
from bge_export.passes.chunk_feed_forward import ChunkFeedForward
from bge_export.passes.conditional_heads import ConditionalHeads
from bge_export.passes.fuse_for_cuda import FuseForCuda
from bge_export.passes.gelu_to_erf import GeluToErf
from bge_export.passes.lower_opset import LowerOpset
from bge_export.passes.precision.bf16_products import CorrectBiases, RoundProducts
from bge_export.passes.precision.emulate_half_precision import EmulateHalfPrecision
from bge_export.passes.precision.half_precision import HalfPrecision, check_range
from bge_export.passes.precision.quantize_matrices import (
    BLOCK,
    LIMIT,
    QuantizedInput,
    QuantizedMatrix,
    QuantizeEmbeddings,
    QuantizeMatrices,
    block_of,
    matrices_by_input,
    quantize,
)
from bge_export.passes.prune_last_layer import PruneLastLayer

__all__ = [
    "BLOCK",
    "LIMIT",
    "AttentionToMatMul",
    "BlockwiseAttention",
    "BroadcastMask",
    "ChunkFeedForward",
    "ConditionalHeads",
    "CorrectBiases",
    "DecomposePackedAttention",
    "EmulateHalfPrecision",
    "FoldAttentionBias",
    "FoldQueryBias",
    "FuseForCuda",
    "GeluToErf",
    "HalfPrecision",
    "LowerOpset",
    "PackAttention",
    "PruneLastLayer",
    "QuantizeEmbeddings",
    "QuantizeMatrices",
    "QuantizedInput",
    "QuantizedMatrix",
    "RoundProducts",
    "block_of",
    "check_range",
    "matrices_by_input",
    "quantize",
]
