"""The table of the graphs that an encoder can be exported to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from bge_export.passes import (
    BLOCK,
    AttentionToMatMul,
    BlockwiseAttention,
    BroadcastMask,
    ChunkFeedForward,
    ConditionalHeads,
    FoldAttentionBias,
    FoldQueryBias,
    FuseForCuda,
    GeluToErf,
    HalfPrecision,
    LowerOpset,
    PackAttention,
    PruneLastLayer,
)
from bge_export.targets.base import Target, TargetVariant

TRACE_OPSET = 23
"""Opset of the trace, with attention, norms and Gelu as one node each. Many tools do not read it
yet, so it is never shipped."""

PORTABLE_OPSET = 18
"""Opset that ONNX Runtime, TEI and transformers.js have read for years."""

_HALF_WEIGHTS = "onnx/model_fp16.onnx_data"

_BLOCKS_OPSET = 21
"""First opset whose DequantizeLinear has a scale for each block of a matrix."""

Passes = Callable[[], Sequence[ir.passes.InPlacePass]]
"""Creates graph passes, in the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class EncoderTarget(Target):
    """A graph of an encoder: the passes that make it from the trace, and how it is written.

    Attributes:
        outputs: Outputs of the graph, in order.
        passes: Passes that lower the trace.
        packed: Whether they start from the trace of packed texts, which have no padding.
        uniform_length: Passes for a branch for texts of one length, if the graph has one.
        long_passes: Passes for models that read long texts or have M3's heads, if they differ.
        long_variants: Variants for those models, if they differ.
        format: ``"onnx"`` or ``"openvino"``.
        openvino_file: Path of the same graph in OpenVINO's format, over the same weights; None if
            OpenVINO reads the ONNX file.
        quantization_block: Inputs of a matrix that share a scale in 8 bits; None for no
            quantization.
        weights: Path of the file of its weights, which other graphs may share.
        stores_weights: Whether it is written first, with all its weights.
        written_with: A further target; each of the two is always written with the other.
    """

    outputs: tuple[str, ...]
    passes: Passes
    packed: bool = False
    uniform_length: Passes | None = None
    long_passes: Passes | None = None
    long_variants: tuple[TargetVariant, ...] | None = None
    format: str = "onnx"
    openvino_file: str | None = None
    quantization_block: int | None = None
    weights: str = "onnx/model.onnx_data"
    stores_weights: bool = False
    written_with: EncoderTarget | None = None

    @property
    def openvino_graph(self) -> str:
        """Name of the graph that OpenVINO runs."""
        return f"{self.name}-openvino" if self.openvino_file else self.name

    def graph_for(self, engine: str) -> str:
        """Return the name of the graph that an engine runs."""
        return self.openvino_graph if engine == "openvino" else self.name


_PORTABLE_FP32 = TargetVariant("portable-fp32", "onnxruntime", "fp32")
_CPU_FP32 = TargetVariant("cpu-fp32", "onnxruntime", "fp32")
_OPENVINO_FP32 = TargetVariant("openvino-fp32", "openvino", "fp32")
_OPENVINO_INT8 = TargetVariant("openvino-int8", "openvino", "int8")
_CPU_INT8 = TargetVariant("cpu-int8", "onnxruntime", "int8")

_CHUNK_TOKENS = 4096
"""Tokens that a feed-forward layer processes at a time. Measured with 8192 tokens of M3 only: the
peak was 393 MiB above the loaded model, and 523 MiB with whole layers."""


def _standard_operators() -> Sequence[ir.passes.InPlacePass]:
    # On a CPU they are as fast as ONNX Runtime's fused operators (150 to 180 GFLOP/s on two Zen 4
    # cores, bge-base, either way). Its Attention of opset 23 refuses a mask that broadcasts over
    # queries.
    return (AttentionToMatMul(), GeluToErf(), LowerOpset(PORTABLE_OPSET))


def _packed_passes(*, uniform_length: bool) -> Sequence[ir.passes.InPlacePass]:
    return (FoldQueryBias(), FoldAttentionBias(), PruneLastLayer(),
            PackAttention(uniform_length=uniform_length), FuseForCuda(),
            LowerOpset(PORTABLE_OPSET), HalfPrecision())  # fmt: skip


PORTABLE = EncoderTarget(
    name="portable",
    precision="fp32",
    file="onnx/model.onnx",
    outputs=("last_hidden_state", "sentence_embedding"),
    passes=lambda: (BroadcastMask(), *_standard_operators()),
    variants=(_PORTABLE_FP32,),
    # The graph for CPUs then has what only ONNX Runtime runs well.
    long_variants=(_OPENVINO_FP32, _PORTABLE_FP32),
    device="cpu",
    description="standard operators of opset 18, for every ONNX consumer; always written",
    stores_weights=True,
)

CPU = EncoderTarget(
    name="cpu",
    precision="fp32",
    file="onnx/model_cpu_fp32.onnx",
    outputs=("sentence_embedding",),
    passes=lambda: (BroadcastMask(), PruneLastLayer(), *_standard_operators()),
    variants=(_CPU_FP32, _OPENVINO_FP32),
    long_passes=lambda: (BroadcastMask(), PruneLastLayer(), BlockwiseAttention(), GeluToErf(),
                         ChunkFeedForward(_CHUNK_TOKENS), *_standard_operators(),
                         ConditionalHeads()),
    long_variants=(_CPU_FP32,),
    device="cpu",
    description="ONNX Runtime on a CPU; the last layer computes what pooling uses",
)  # fmt: skip

OPENVINO = EncoderTarget(
    name="openvino",
    precision="bf16",
    file="openvino/openvino_model.xml",
    # Other tools read the hidden states. Without them only [CLS] is computed at the end.
    outputs=PORTABLE.outputs,
    passes=CPU.passes,
    variants=(TargetVariant("openvino-bf16", "openvino", "bf16"),),
    device="cpu",
    description="OpenVINO with 16-bit weights, for a CPU with AVX512-BF16 or AMX",
    format="openvino",
)

INT8 = EncoderTarget(
    name="int8",
    precision="int8",
    file="onnx/model_int8.onnx",
    weights="onnx/model_int8.onnx_data",
    # Of the weights that it reads from there, no page stays in memory.
    openvino_file="openvino/int8.xml",
    outputs=CPU.outputs,
    # Quantization comes last: it needs the values of some texts.
    passes=lambda: (BroadcastMask(), PruneLastLayer(), AttentionToMatMul(), GeluToErf(),
                    LowerOpset(_BLOCKS_OPSET)),
    variants=(_OPENVINO_INT8, _CPU_INT8),
    # ONNX Runtime would store a score for each pair of tokens.
    long_variants=(_OPENVINO_INT8,),
    device="cpu",
    description="matrices in 8 bits, for a CPU with VNNI",
    on_request=True,
    quantization_block=BLOCK,
)  # fmt: skip

CUDA_UNIFORM = EncoderTarget(
    name="cuda-even",
    precision="fp16",
    file="onnx/model_cuda_even_fp16.onnx",
    outputs=CPU.outputs,
    passes=lambda: _packed_passes(uniform_length=True),
    packed=True,
    weights=_HALF_WEIGHTS,
    variants=(TargetVariant("cuda-even-fp16", "onnxruntime", "fp16"),),
    device="cuda",
    description="for texts of one length only, as CUDA graphs; written with cuda",
    on_request=True,
)

CUDA = replace(
    CUDA_UNIFORM,
    name="cuda",
    file="onnx/model_cuda_fp16.onnx",
    # Branches for M3's heads are here only: a CUDA graph must have no branches.
    passes=lambda: (*_packed_passes(uniform_length=False), ConditionalHeads()),
    uniform_length=lambda: (*_packed_passes(uniform_length=True), ConditionalHeads()),
    variants=(TargetVariant("cuda-fp16", "onnxruntime", "fp16"),),
    description="ONNX Runtime on an NVIDIA GPU, texts packed without padding",
    on_request=True,
    written_with=CUDA_UNIFORM,
)

TENSORRT = EncoderTarget(
    name="tensorrt",
    precision="fp16",
    file="onnx/model_tensorrt_fp16.onnx",
    outputs=CPU.outputs,
    # Biases are folded as in the graphs that it shares its weights with.
    passes=lambda: (BroadcastMask(), FoldQueryBias(), FoldAttentionBias(), PruneLastLayer(),
                    AttentionToMatMul(), GeluToErf(), LowerOpset(PORTABLE_OPSET),
                    HalfPrecision()),
    weights=_HALF_WEIGHTS,
    variants=(TargetVariant("tensorrt-fp16", "tensorrt", "fp16"),),
    device="cuda",
    description="TensorRT, standard operators with explicit fp16; not yet run on a GPU",
    on_request=True,
)  # fmt: skip

ENCODER_TARGETS = (OPENVINO, CPU, INT8, CUDA, CUDA_UNIFORM, TENSORRT, PORTABLE)
"""All targets, in the runtime's order of preference. Pairs of name and precision are unique."""

_LONG = 512
"""Up to this many tokens, attention scores take little memory compared to the weights."""


def for_model(
    target: EncoderTarget, max_length: int, *, heads: bool, scores: bool = False
) -> EncoderTarget:
    """Return a target's form for a model.

    Args:
        target: The target.
        max_length: Tokens that the model reads.
        heads: Whether it has M3's heads.
        scores: Whether it is a reranker. No output of its then needs more than [CLS].
    """
    if scores and target is PORTABLE:
        target = replace(target, passes=CPU.passes)
    if max_length <= _LONG and not heads:
        return target
    if target.long_passes is None and target.long_variants is None:
        return target
    return replace(
        target,
        passes=target.long_passes or target.passes,
        variants=target.long_variants or target.variants,
    )
