"""Targets and precisions: what ``bge-export`` can write, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from bge_export.passes import (
    AttentionInBlocks,
    AttentionToMatMul,
    BroadcastMask,
    FirstTokenOnly,
    GeluToErf,
    LowerOpset,
)
from bge_runtime.errors import ExportError

TRACE_OPSET = 23
"""Says attention, normalisation and Gelu as one node each. An internal step: many
consumers refuse it."""

PORTABLE_OPSET = 18
"""What ONNX Runtime, TEI and transformers.js of recent years all read."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A form that the traced graph can be brought into.

    Attributes:
        name: What ``--target`` calls it, and the graph's key in the manifest.
        precision: What ``--precision`` calls it.
        file: Path of the graph inside the bundle.
        outputs: Outputs of the graph, the first one first.
        passes: Makes the passes that lead to it, in order.
        variants: Ways to run it: name, engine and precision of each.
        device: Kind of device it is for.
        description: A line for the table.
    """

    name: str
    precision: str
    file: str
    outputs: tuple[str, ...]
    passes: Callable[[], Sequence[ir.passes.InPlacePass]]
    variants: tuple[tuple[str, str, str], ...]
    device: str
    description: str


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
    passes=lambda: (BroadcastMask(), FirstTokenOnly(), *_standard_operators()),
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

_LONG = 512
"""Up to so many tokens the scores of attention are small beside the weights."""

_LONG_CPU = replace(
    CPU,
    passes=lambda: (BroadcastMask(), FirstTokenOnly(), AttentionInBlocks(),
                    *_standard_operators()),
    variants=CPU.variants[:1],
)  # fmt: skip
_LONG_PORTABLE = replace(PORTABLE, variants=(CPU.variants[1], *PORTABLE.variants))


def for_length(target: Target, max_length: int) -> Target:
    """Give a target's form for a model that reads so many tokens.

    For long ones the graph of ``cpu`` has operators that only ONNX Runtime knows, and
    OpenVINO takes the portable one in fp32.
    """
    if max_length <= _LONG:
        return target
    return {CPU.name: _LONG_CPU, PORTABLE.name: _LONG_PORTABLE}.get(target.name, target)


TARGETS = (OPENVINO, CPU, PORTABLE)
"""In the order in which the runtime prefers them. Target and precision are unique."""


def select_targets(names: Sequence[str], precisions: Sequence[str]) -> list[Target]:
    """Choose the graphs to write.

    The portable graph is always among them: it holds the weights that all share, and
    is what other tools open.

    Args:
        names: Names of targets; empty for all.
        precisions: Names of precisions; empty for all.

    Raises:
        ExportError: If a combination does not exist; the message holds the table.
    """
    for asked, known, option in (
        (names, {target.name for target in TARGETS}, "target"),
        (precisions, {target.precision for target in TARGETS}, "precision"),
    ):
        unknown = sorted(set(asked) - known)
        if unknown:
            raise ExportError(
                f"requested --{option} {', '.join(unknown)}, which this version does not write. "
                f"It writes:\n{target_table()}"
            )
    chosen = [
        target
        for target in TARGETS
        if (not names or target.name in names)
        and (not precisions or target.precision in precisions)
    ]
    missing = {(n, p) for n in names for p in precisions} - {(t.name, t.precision) for t in chosen}
    if missing:
        pairs = ", ".join(f"{name} in {precision}" for name, precision in sorted(missing))
        raise ExportError(
            f"requested {pairs}, which this version does not write. It writes:\n{target_table()}"
        )
    return [*(target for target in chosen if target is not PORTABLE), PORTABLE]


def target_table() -> str:
    """Print what exists, one line each."""
    return "\n".join(
        f"  --target {target.name:<9} --precision {target.precision:<5} {target.description}"
        for target in TARGETS
    )
