"""Targets and precisions: what ``bge-export`` can write, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import onnx_ir as ir

from bge_export.passes import (
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
from bge_runtime.errors import ExportError

_AnyTarget = TypeVar("_AnyTarget", bound="AnyTarget")

TRACE_OPSET = 23
"""Says attention, normalisation and Gelu as one node each. An internal step: many
consumers refuse it."""

PORTABLE_OPSET = 18
"""What ONNX Runtime, TEI and transformers.js of recent years all read."""

_HALF_WEIGHTS = "onnx/model_fp16.onnx_data"

_BLOCKS_OPSET = 21
"""Its DequantizeLinear has a scale for each block of a matrix."""


@dataclass(frozen=True, kw_only=True)
class AnyTarget:
    """A graph that an export can write.

    Attributes:
        name: What ``--target`` calls it.
        precision: What ``--precision`` calls it.
        file: Path of the graph inside the bundle.
        variants: Ways to run it: name, engine and precision of each.
        device: Kind of device it is for.
        description: A line for the table.
        on_request: Whether it is written only where it or its precision is named.
    """

    name: str
    precision: str
    file: str
    variants: tuple[tuple[str, str, str], ...]
    device: str
    description: str
    on_request: bool = False


@dataclass(frozen=True, kw_only=True)
class Target(AnyTarget):
    """A form that an encoder's traced graph can be brought into; its name is unique.

    Attributes:
        outputs: Outputs of the graph, the first one first.
        passes: Makes the passes that lead to it, in order.
        packed: Whether they begin with the trace over texts that lie behind each other.
        for_one_length: The form of its branch for texts of one length, if it has one.
        weights: Path of the file that its weights lie in.
    """

    outputs: tuple[str, ...]
    passes: Callable[[], Sequence[ir.passes.InPlacePass]]
    packed: bool = False
    for_one_length: Target | None = None
    weights: str = "onnx/model.onnx_data"


@dataclass(frozen=True, kw_only=True)
class DecoderTarget(AnyTarget):
    """A form that a decoder's graph can be built in.

    Attributes:
        storage: Type of its matrices in the file; None for that of the checkpoint. Graphs for
            a GPU compute in it.
    """

    storage: ir.DataType | None


def _standard_operators() -> Sequence[ir.passes.InPlacePass]:
    # On a CPU they are as fast as ONNX Runtime's own fused ones (150 to 180 GFLOP/s on
    # two Zen 4 cores, bge-base, either way), and its Attention of opset 23 refuses a mask
    # that broadcasts over queries.
    return (AttentionToMatMul(), GeluToErf(), LowerOpset(PORTABLE_OPSET))


PORTABLE = Target(
    name="portable",
    precision="fp32",
    file="onnx/model.onnx",
    outputs=("last_hidden_state", "sentence_embedding"),
    passes=lambda: (BroadcastMask(), *_standard_operators()),
    variants=(("portable-fp32", "onnxruntime", "fp32"),),
    device="cpu",
    description="standard operators of opset 18, for every ONNX consumer; always written",
)

CPU = Target(
    name="cpu",
    precision="fp32",
    file="onnx/model_cpu_fp32.onnx",
    outputs=("sentence_embedding",),
    passes=lambda: (BroadcastMask(), PruneLastLayer(), *_standard_operators()),
    variants=(("cpu-fp32", "onnxruntime", "fp32"), ("openvino-fp32", "openvino", "fp32")),
    device="cpu",
    description="ONNX Runtime on a CPU; the last layer computes what pooling uses",
)

OPENVINO = Target(
    name="openvino",
    precision="bf16",
    file="openvino/openvino_model.xml",
    # The hidden states are for other tools; without them only [CLS] is computed at the end.
    outputs=PORTABLE.outputs,
    passes=CPU.passes,
    variants=(("openvino-bf16", "openvino", "bf16"),),
    device="cpu",
    description="OpenVINO with 16-bit weights, for a CPU with AVX512-BF16 or AMX",
)

INT8 = Target(
    name="int8",
    precision="int8",
    file="onnx/model_int8.onnx",
    outputs=CPU.outputs,
    # Without the last step, which takes what texts show.
    passes=lambda: (BroadcastMask(), PruneLastLayer(), AttentionToMatMul(), GeluToErf(),
                    LowerOpset(_BLOCKS_OPSET)),
    variants=(("openvino-int8", "openvino", "int8"), ("cpu-int8", "onnxruntime", "int8")),
    device="cpu",
    description="matrices in 8 bits, for a CPU with VNNI; written only where it is named",
    on_request=True,
)  # fmt: skip


def _packed(*, even: bool) -> Sequence[ir.passes.InPlacePass]:
    return (FoldQueryBias(), FoldAttentionBias(), PruneLastLayer(), PackAttention(even=even),
            FuseForCuda(), LowerOpset(PORTABLE_OPSET), HalfPrecision())  # fmt: skip


CUDA_EVEN = Target(
    name="cuda-even",
    precision="fp16",
    file="onnx/model_cuda_even_fp16.onnx",
    outputs=CPU.outputs,
    passes=lambda: _packed(even=True),
    packed=True,
    weights=_HALF_WEIGHTS,
    variants=(("cuda-even-fp16", "onnxruntime", "fp16"),),
    device="cuda",
    description="for texts of one length only, as CUDA graphs; written with cuda",
    on_request=True,
)  # fmt: skip

CUDA = replace(
    CUDA_EVEN,
    name="cuda",
    file="onnx/model_cuda_fp16.onnx",
    passes=lambda: (*_packed(even=False), ConditionalHeads()),
    # Only here: what is captured as a CUDA graph must have no branches.
    for_one_length=replace(CUDA_EVEN, passes=lambda: (*_packed(even=True), ConditionalHeads())),
    variants=(("cuda-fp16", "onnxruntime", "fp16"),),
    description="ONNX Runtime on an NVIDIA GPU, texts packed without padding",
)  # fmt: skip

TENSORRT = Target(
    name="tensorrt",
    precision="fp16",
    file="onnx/model_tensorrt_fp16.onnx",
    outputs=CPU.outputs,
    # Biases are folded as in the graphs that it shares its weights with.
    passes=lambda: (BroadcastMask(), FoldQueryBias(), FoldAttentionBias(), PruneLastLayer(),
                    AttentionToMatMul(), GeluToErf(), LowerOpset(PORTABLE_OPSET),
                    HalfPrecision()),
    weights=_HALF_WEIGHTS,
    variants=(("tensorrt-fp16", "tensorrt", "fp16"),),
    device="cuda",
    description="TensorRT, standard operators that say fp16 themselves; not yet run on a GPU",
    on_request=True,
)  # fmt: skip

_LONG = 512
"""Up to so many tokens the scores of attention are small beside the weights."""

_PART = 4096
"""Tokens that a feed-forward layer takes at a time. Measured at 8192 tokens of M3 only: 393 MiB
above the loaded model at the peak, where whole layers took 523."""

_LONG_CPU = replace(
    CPU,
    passes=lambda: (BroadcastMask(), PruneLastLayer(), BlockwiseAttention(),
                    GeluToErf(), ChunkFeedForward(_PART), *_standard_operators(),
                    ConditionalHeads()),
    variants=CPU.variants[:1],
)  # fmt: skip
_LONG_PORTABLE = replace(PORTABLE, variants=(CPU.variants[1], *PORTABLE.variants))
# ONNX Runtime would hold one score for each pair of tokens.
_LONG_INT8 = replace(INT8, variants=INT8.variants[:1])


def for_model(target: Target, max_length: int, *, heads: bool) -> Target:
    """Give a target's form for a model that reads so many tokens, and has M3's heads or not.

    For long ones, and those with heads, the graph of ``cpu`` has what only ONNX Runtime runs
    well, and OpenVINO takes the portable one in fp32.
    """
    if max_length <= _LONG and not heads:
        return target
    long = {target.name: target for target in (_LONG_CPU, _LONG_PORTABLE, _LONG_INT8)}
    return long.get(target.name, target)


TARGETS = (OPENVINO, CPU, INT8, CUDA, CUDA_EVEN, TENSORRT, PORTABLE)
"""In the order in which the runtime prefers them. Target and precision are unique."""


DECODER_TARGETS = (
    DecoderTarget(
        name="cpu",
        precision="fp32",
        file="onnx/model.onnx",
        variants=(
            ("openvino-bf16", "openvino", "bf16"),
            ("cpu-fp32", "onnxruntime", "fp32"),
        ),
        device="cpu",
        storage=None,
        description="decoders: the checkpoint's own weights, bit for bit; written by default",
    ),
    DecoderTarget(
        name="cpu",
        precision="bf16",
        file="onnx/model_cpu_bf16.onnx",
        variants=(("openvino-bf16", "openvino", "bf16"),),
        device="cpu",
        storage=ir.DataType.BFLOAT16,
        description="decoders: weights rounded to bf16, half the size of an fp32 checkpoint",
    ),
    DecoderTarget(
        name="cpu",
        precision="int8",
        file="onnx/model_cpu_int8.onnx",
        variants=(
            ("openvino-int8", "openvino", "int8"),
            ("cpu-int8", "onnxruntime", "int8"),
        ),
        device="cpu",
        storage=ir.DataType.INT8,
        description="decoders: matrices in 8 bits, one scale for 32 weights",
    ),
    DecoderTarget(
        name="cpu",
        precision="int4",
        file="onnx/model_cpu_int4.onnx",
        variants=(
            ("openvino-int4", "openvino", "int4"),
            ("cpu-int4", "onnxruntime", "int4"),
        ),
        device="cpu",
        storage=ir.DataType.INT4,
        description="decoders: matrices in 4 bits, for a first look at a large model",
    ),
    DecoderTarget(
        name="cuda",
        precision="bf16",
        file="onnx/model_cuda_bf16.onnx",
        variants=(("cuda-bf16", "onnxruntime", "bf16"),),
        device="cuda",
        storage=ir.DataType.BFLOAT16,
        description="decoders: ONNX Runtime on an NVIDIA GPU",
    ),
    DecoderTarget(
        name="cuda",
        precision="fp16",
        file="onnx/model_cuda_fp16.onnx",
        variants=(("cuda-fp16", "onnxruntime", "fp16"),),
        device="cuda",
        storage=ir.DataType.FLOAT16,
        description="decoders: the same in fp16, not yet run on one; take bf16 for Gemma 2",
    ),
    DecoderTarget(
        name="tensorrt",
        precision="bf16",
        file="onnx/model_tensorrt_bf16.onnx",
        variants=(("tensorrt-bf16", "tensorrt", "bf16"),),
        device="cuda",
        storage=ir.DataType.BFLOAT16,
        description="decoders: TensorRT, standard operators; not yet run on a GPU",
    ),
)
"""Of decoders. Those that store the weights alike share one file of them. Only the first is
written unasked."""


def select_targets(names: Sequence[str], precisions: Sequence[str]) -> list[Target]:
    """Choose the graphs to write of an encoder.

    The portable graph is always among them: it holds the weights that all share, and
    is what other tools open.

    Args:
        names: Names of targets; empty for all.
        precisions: Names of precisions; empty for all.

    Raises:
        ExportError: If a combination does not exist; the message holds the table.
    """
    chosen = _chosen(TARGETS, names, precisions)
    if CUDA in chosen and CUDA_EVEN not in chosen:
        chosen.insert(chosen.index(CUDA) + 1, CUDA_EVEN)
    return [*(target for target in chosen if target is not PORTABLE), PORTABLE]


def select_decoder_targets(names: Sequence[str], precisions: Sequence[str]) -> list[DecoderTarget]:
    """Choose the graphs to write of a decoder; with nothing asked for, the first one.

    Args:
        names: Names of targets; empty for ``cpu``.
        precisions: Names of precisions; empty for all of the targets that are named.

    Raises:
        ExportError: As `select_targets`.
    """
    precisions = precisions or (() if names else ("fp32",))
    return _chosen(DECODER_TARGETS, names or ("cpu",), precisions)


def _chosen(
    table: Sequence[_AnyTarget], names: Sequence[str], precisions: Sequence[str]
) -> list[_AnyTarget]:
    known_names = {target.name for target in table}
    if precisions:
        known_names |= {engine for target in table for _, engine, _ in target.variants}
    for asked, known, option in (
        (names, known_names, "target"),
        (precisions, {target.precision for target in table}, "precision"),
    ):
        unknown = sorted(set(asked) - known)
        if unknown:
            raise ExportError(
                f"requested --{option} {', '.join(unknown)}, which this version does not write "
                f"of such a model. It writes:\n{target_table(table)}"
            )
    if not names or not precisions:
        return [
            target
            for target in table
            if target.name in names
            or target.precision in precisions
            or not (names or precisions or target.on_request)
        ]
    found = {
        (name, precision): matching
        for name in names
        for precision in precisions
        if (matching := _matching(table, name, precision))
    }
    # Of several targets and precisions each has to be written somehow, not all with all.
    if not {*names, *precisions} <= {word for pair in found for word in pair}:
        missing = {(name, precision) for name in names for precision in precisions} - {*found}
        pairs = ", ".join(f"{name} in {precision}" for name, precision in sorted(missing))
        raise ExportError(
            f"requested {pairs}, which this version does not write of such a model. It "
            f"writes:\n{target_table(table)}"
        )
    return [target for target in table if any(target in matching for matching in found.values())]


def _matching(table: Sequence[_AnyTarget], name: str, precision: str) -> list[_AnyTarget]:
    """Find the targets of a name and a precision.

    Where no target of that precision has the name, a device or an engine serves as one:
    ``--target cpu --precision int8`` is the target int8, which runs on a CPU.
    """
    written = [target for target in table if target.precision == precision]
    return (
        [target for target in written if target.name == name]
        or [target for target in written if target.device == name]
        or [
            target
            for target in written
            if any((engine, form) == (name, precision) for _, engine, form in target.variants)
        ]
    )


def target_table(table: Sequence[AnyTarget] = (*TARGETS, *DECODER_TARGETS)) -> str:
    """Print what exists, one line each."""
    return "\n".join(
        f"  --target {target.name:<9} --precision {target.precision:<5} {target.description}"
        for target in table
    )
