"""Graph passes: from the one traced graph to the form each target wants.

One pass a file. A pass says what it requires and what it changes, changes the model
in place, and is tested by running the graph before and after. To add one, write the
file and put it into the list of the targets that want it, in `bge_export.targets`.
"""

from bge_export.passes.attention_in_blocks import AttentionInBlocks
from bge_export.passes.attention_to_matmul import AttentionToMatMul
from bge_export.passes.bf16_products import CorrectBiases, RoundProducts
from bge_export.passes.broadcast_mask import BroadcastMask
from bge_export.passes.feed_forward_in_parts import FeedForwardInParts
from bge_export.passes.first_token_only import FirstTokenOnly
from bge_export.passes.fold_attention_bias import FoldAttentionBias
from bge_export.passes.fold_query_bias import FoldQueryBias
from bge_export.passes.fuse_for_cuda import FuseForCuda
from bge_export.passes.gelu_to_erf import GeluToErf
from bge_export.passes.half_precision import HalfPrecision
from bge_export.passes.heads_on_request import HeadsOnRequest
from bge_export.passes.lower_opset import LowerOpset
from bge_export.passes.packed_attention import PackAttention, SpellOutPacked
from bge_export.passes.quantize_matrices import QuantizeMatrices
from bge_export.passes.sixteen_bits_on_cpu import SixteenBitsOnCpu

__all__ = [
    "AttentionInBlocks",
    "AttentionToMatMul",
    "BroadcastMask",
    "CorrectBiases",
    "FeedForwardInParts",
    "FirstTokenOnly",
    "FoldAttentionBias",
    "FoldQueryBias",
    "FuseForCuda",
    "GeluToErf",
    "HalfPrecision",
    "HeadsOnRequest",
    "LowerOpset",
    "PackAttention",
    "QuantizeMatrices",
    "RoundProducts",
    "SixteenBitsOnCpu",
    "SpellOutPacked",
]
