"""Who takes part in a comparison, and who is left out and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bge_bench.errors import BenchError
from bge_bench.systems.base import BASELINES, FROM_CHECKPOINT, GPU_BASELINES, OURS, SideSpec
from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines import device_kind, unavailable_reason
from bge_runtime.sources import ENCODER_ONLY_BASE
from bge_runtime.system import vector_extensions

_PACKAGES = {
    "flagembedding": "FlagEmbedding",
    "transformers": "transformers",
    "transformers-compiled": "transformers",
    "sentence-transformers": "sentence_transformers",
    "sentence-transformers-bf16": "sentence_transformers",
    "sentence-transformers-onnx": "optimum.onnxruntime",
    "sentence-transformers-openvino": "optimum.intel",
    "optimum": "optimum.onnxruntime",
    "fastembed": "fastembed",
    "onnxruntime": "onnxruntime",
}
"""What a baseline imports."""

FASTEST = "sentence-transformers-openvino"
"""The fastest of the baselines where it computes in bf16: it is timed on all texts as we are."""

_BF16_IN_PYTORCH = frozenset({"avx512f", "bf16"})
"""Either has PyTorch's products in bf16; AVX512 even where it computes them in fp32."""

_OUR_BATCH_SIZE = 256
"""FlagModel's default; it fills batches by tokens, and this is only the most texts."""

_OUR_PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One side of a comparison.

    Attributes:
        label: Unique name, such as ``"bge-runtime int8"``.
        spec: How to open it.
        in_full: Whether it is timed on all texts, or on a sample of them only.
    """

    label: str
    spec: SideSpec
    in_full: bool

    @property
    def ours(self) -> bool:
        """Whether it is bge-runtime."""
        return self.spec.side == OURS


def our_side(bundle: Bundle, *, threads: int, device: str = "cpu") -> SideSpec:
    """Describe a bundle as its users open it, for texts of 512 tokens at most."""
    model = bundle.manifest.model
    return SideSpec(
        side=OURS,
        model=str(bundle.path.absolute()),
        pooling=model.pooling,
        max_length=min(model.max_length, 512),
        batch_size=_OUR_BATCH_SIZE,
        threads=threads,
        precision="auto",
        model_class=model.model_class,
        device=device,
    )


def baseline_side(ours: SideSpec, side: str, checkpoint: Path) -> SideSpec:
    """Describe a baseline that does the work of ours; it reads the checkpoint or the bundle."""
    folder = str(checkpoint.absolute()) if side in FROM_CHECKPOINT else ours.model
    return replace(ours, side=side, model=folder)


def line_up(
    bundle: Bundle,
    checkpoint: Path,
    *,
    baselines: Sequence[str],
    threads: int,
    precisions: Sequence[str] = (),
    device: str = "cpu",
    cuda_graphs: bool = False,
    one_by_one: bool = False,
) -> tuple[list[Entrant], dict[str, str]]:
    """List who can take part on this machine.

    Args:
        bundle: The bundle, of an encoder with dense vectors.
        checkpoint: The checkpoint it was made from.
        baselines: Names out of `BASELINES`.
        threads: Threads of each.
        precisions: Of the bundle; empty for all that it has and this machine runs.
        device: Device of all. On a GPU everyone is fast enough to be timed on all texts.
        cuda_graphs: On a GPU, let ours take part once more with ``cuda_graphs``.
        one_by_one: On a CPU, let ours take part once more without ``parallel_batches``.

    Returns:
        The entrants, ours first, and the reason for each that is left out.

    Raises:
        BenchError: If the bundle is no such model, or lacks a precision that was named.
    """
    model = bundle.manifest.model
    if model.model_class != ENCODER_ONLY_BASE:
        raise BenchError(
            f"{model.name} is of the class {model.model_class}; tables compare encoders of the "
            f"class {ENCODER_ONLY_BASE}. Time it beside FlagEmbedding with bge-bench speed"
        )
    here = variants_here(bundle, device)
    able = {variant.precision for variant in here}
    missing = sorted(set(precisions) - able)
    if missing:
        raise BenchError(
            f"{bundle.path.name} has no variant in {', '.join(missing)} that this machine runs on "
            f"{device}; it has {', '.join(sorted(able))}. Export it again with --precision "
            f"{missing[0]}"
        )
    on_gpu = device != "cpu"
    ours = our_side(bundle, threads=threads, device=device)
    chosen = [precision for precision in _OUR_PRECISIONS if precision in (precisions or able)]
    entrants = [
        Entrant(
            label=f"{OURS} {precision}",
            spec=replace(ours, precision=precision),
            # Of fp32 the sample will do, since what it is held against runs no more.
            in_full=on_gpu or precision != "fp32" or len(chosen) == 1,
        )
        for precision in chosen
    ]
    if on_gpu and cuda_graphs:
        on_it = {variant.precision for variant in here if variant.engine == "onnxruntime"}
        capturing = [entrant for entrant in entrants if entrant.spec.precision in on_it]
        entrants += _once_more(capturing, "CUDA graphs", cuda_graphs=True)
    if one_by_one and not on_gpu:
        entrants += _once_more(entrants, "one batch at a time", parallel_batches=False)
    left_out = {}
    for side in GPU_BASELINES if on_gpu else BASELINES:
        if side not in baselines:
            continue
        if (reason := _cannot_take_part(side)) is not None:
            left_out[side] = reason
            continue
        spec = baseline_side(ours, side, checkpoint)
        entrants.append(Entrant(label=side, spec=spec, in_full=on_gpu or side == FASTEST))
        if side == FASTEST:
            held = replace(spec, precision="fp32")
            entrants.append(Entrant(label=f"{side} held to fp32", spec=held, in_full=False))
    return entrants, left_out


def _once_more(entrants: Sequence[Entrant], how: str, **changes: Any) -> list[Entrant]:
    return [
        replace(entrant, label=f"{entrant.label}, {how}", spec=replace(entrant.spec, **changes))
        for entrant in entrants
    ]


def variants_here(bundle: Bundle, device: str) -> list[Variant]:
    """List the variants of a bundle that this machine runs on a device.

    Raises:
        BenchError: If there are some for it, and none that runs.
    """
    there = [v for v in bundle.manifest.variants if v.device == device_kind(device)]
    here = [variant for variant in there if unavailable_reason(variant) is None]
    if there and not here:
        raise BenchError(
            f"nothing of {bundle.path.name} runs on {device}: {unavailable_reason(there[0])}"
        )
    return here


def _cannot_take_part(side: str) -> str | None:
    """Tell why a baseline cannot be timed on this machine; None if it can."""
    if not _installed(_PACKAGES[side]):
        return f"{_PACKAGES[side]} is not installed"
    extensions = vector_extensions()
    if side.endswith("-bf16") and extensions and _BF16_IN_PYTORCH.isdisjoint(extensions):
        # Nobody would choose it: with AVX2 bge-large took minutes for 32 paragraphs.
        return "PyTorch has no fast products in bf16 on this processor (no AVX512, no ARM bf16)"
    return None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
