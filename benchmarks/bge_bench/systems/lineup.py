"""Choose the systems of a comparison, and explain which are left out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bge_bench.errors import BenchError
from bge_bench.systems.base import (
    BASELINES,
    FROM_CHECKPOINT,
    GPU_BASELINES,
    INT8_BASELINES,
    OURS,
    SystemSpec,
)
from bge_runtime.bundle import Bundle, Variant
from bge_runtime.engines import device_kind, unavailable_reason
from bge_runtime.sources import ENCODER_ONLY_BASE, RERANKER_ENCODER
from bge_runtime.system import vector_extensions

_PACKAGES: dict[str, tuple[str, ...]] = {
    "flagembedding": ("FlagEmbedding",),
    "transformers": ("transformers",),
    "transformers-compiled": ("transformers",),
    "sentence-transformers": ("sentence_transformers",),
    "sentence-transformers-bf16": ("sentence_transformers",),
    "sentence-transformers-onnx": ("optimum.onnxruntime",),
    "sentence-transformers-openvino": ("optimum.intel",),
    "optimum": ("optimum.onnxruntime",),
    "fastembed": ("fastembed",),
    "onnxruntime": ("onnxruntime",),
    "sentence-transformers-onnx-int8": ("optimum.onnxruntime",),
    "sentence-transformers-openvino-int8": ("optimum.intel", "nncf", "datasets"),
    "openvino-int8": ("optimum.intel", "nncf", "datasets"),
    "ctranslate2": ("ctranslate2",),
}
"""Packages that each baseline imports, or that make its model."""

FASTEST = "sentence-transformers-openvino"
"""The fastest baseline where it computes in bf16. It is timed on all texts, as bge-runtime is."""

FASTEST_INT8 = "openvino-int8"
"""The fastest baseline in int8, likewise."""

Int8Model = Callable[[str], Path]
"""Returns the folder of a baseline's model; see `bge_bench.systems.int8_models.int8_model`."""

_OWN_BATCH_SIZES = {"flagembedding": (256, 128), "fastembed": (256, 64)}
_OTHERS_BATCH_SIZE = 32
"""Batch sizes that baselines come with, as embedders and as rerankers. Of the others that of
sentence-transformers; who writes a loop of his own has to choose one."""

_BF16_IN_PYTORCH = frozenset({"avx512f", "bf16"})
"""With either of these PyTorch's bf16 products are fast; with AVX512 it computes them in fp32."""

_OUR_BATCH_SIZE = 256
"""FlagModel's default. Batches are limited by tokens, so this is only an upper limit."""

_OUR_PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A system that takes part in a comparison.

    Attributes:
        label: Unique name, such as ``"bge-runtime int8"``.
        spec: How to open it.
        in_full: Whether it is timed on all texts, or only on a sample of them.
    """

    label: str
    spec: SystemSpec
    in_full: bool

    @property
    def ours(self) -> bool:
        """Whether it is bge-runtime."""
        return self.spec.system == OURS


def our_system(bundle: Bundle, *, threads: int, device: str = "cpu") -> SystemSpec:
    """Return the spec of a bundle opened with its defaults, for texts of at most 512 tokens."""
    model = bundle.manifest.model
    return SystemSpec(
        system=OURS,
        model=str(bundle.path.absolute()),
        pooling=model.pooling,
        max_length=min(model.max_length, 512),
        batch_size=_OUR_BATCH_SIZE,
        threads=threads,
        precision="auto",
        model_class=model.model_class,
        device=device,
    )


def baseline_system(
    ours: SystemSpec, system: str, checkpoint: Path, int8_model: Int8Model | None = None
) -> SystemSpec:
    """Return the spec of a baseline that does the same work as ours.

    Args:
        ours: Spec of bge-runtime.
        system: Name of the baseline.
        checkpoint: Folder of the checkpoint.
        int8_model: Makes the models of `INT8_BASELINES`; without it there are none.

    Raises:
        BenchError: If its int8 model cannot be made.
    """
    if system in INT8_BASELINES:
        if (reason := _cannot_take_part(system, ours)) is not None or int8_model is None:
            raise BenchError(f"{system} cannot take part: {reason or 'its model is not made here'}")
        return replace(ours, system=system, model=str(int8_model(system)), precision="int8")
    folder = str(checkpoint.absolute()) if system in FROM_CHECKPOINT else ours.model
    return replace(ours, system=system, model=folder)


def line_up(
    bundle: Bundle,
    checkpoint: Path,
    *,
    baselines: Sequence[str],
    threads: int,
    precisions: Sequence[str] = (),
    device: str = "cpu",
    cuda_graphs: bool = False,
    no_parallel_batches: bool = False,
    int8_model: Int8Model | None = None,
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates that can run on this machine.

    Args:
        bundle: The bundle, of an encoder with dense vectors or scores.
        checkpoint: The checkpoint it was made from.
        baselines: Names out of `BASELINES` and `INT8_BASELINES`.
        threads: Threads of each.
        precisions: Precisions of the bundle; empty for all that this machine runs.
        device: Device of all. On a GPU all are fast enough to be timed on all texts.
        cuda_graphs: On a GPU, add bge-runtime with ``cuda_graphs``.
        no_parallel_batches: On a CPU, add bge-runtime without ``parallel_batches``.
        int8_model: Makes the models of `INT8_BASELINES`; see `baseline_system`.

    Returns:
        The candidates, bge-runtime first, and the reason for each baseline that is left out.

    Raises:
        BenchError: If the bundle is not of such an encoder, or lacks a precision.
    """
    model = bundle.manifest.model
    if model.model_class not in (ENCODER_ONLY_BASE, RERANKER_ENCODER):
        raise BenchError(
            f"{model.name} is of the class {model.model_class}; tables compare encoders of the "
            f"classes {ENCODER_ONLY_BASE} and {RERANKER_ENCODER}. Time it beside FlagEmbedding "
            "with bge-bench speed"
        )
    here = variants_here(bundle, device)
    able = {variant.precision for variant in here}
    _check_precisions(bundle, able, precisions, device)
    on_gpu = device != "cpu"
    ours = our_system(bundle, threads=threads, device=device)
    chosen = [precision for precision in _OUR_PRECISIONS if precision in (precisions or able)]
    candidates = [
        Candidate(
            label=f"{OURS} {precision}",
            spec=replace(ours, precision=precision),
            # The sample is enough for fp32: its competitors run only the sample as well.
            in_full=on_gpu or precision != "fp32" or len(chosen) == 1,
        )
        for precision in chosen
    ]
    if on_gpu and cuda_graphs:
        on_it = {variant.precision for variant in here if variant.engine == "onnxruntime"}
        capturing = [candidate for candidate in candidates if candidate.spec.precision in on_it]
        candidates += _once_more(capturing, "CUDA graphs", cuda_graphs=True)
    if no_parallel_batches and not on_gpu:
        candidates += _once_more(candidates, "one batch at a time", parallel_batches=False)
    left_out = {}
    for system in GPU_BASELINES if on_gpu else (*BASELINES, *INT8_BASELINES):
        if system not in baselines:
            continue
        try:
            if (reason := _cannot_take_part(system, ours)) is not None:
                raise BenchError(reason)
            spec = baseline_system(ours, system, checkpoint, int8_model)
        except BenchError as error:
            left_out[system] = str(error)
            continue
        in_full = on_gpu or system in (FASTEST, FASTEST_INT8)
        candidates.append(Candidate(label=system, spec=spec, in_full=in_full))
        if system == FASTEST:
            held = replace(spec, precision="fp32")
            candidates.append(Candidate(label=f"{system} held to fp32", spec=held, in_full=False))
    return candidates, left_out


def _check_precisions(
    bundle: Bundle, able: set[str], precisions: Sequence[str], device: str
) -> None:
    missing = sorted(set(precisions) - able)
    if missing:
        raise BenchError(
            f"{bundle.path.name} has no variant in {', '.join(missing)} that this machine runs on "
            f"{device}; it has {', '.join(sorted(able))}. Export it again with --precision "
            f"{missing[0]}"
        )


def _once_more(candidates: Sequence[Candidate], how: str, **changes: Any) -> list[Candidate]:
    return [
        replace(
            candidate, label=f"{candidate.label}, {how}", spec=replace(candidate.spec, **changes)
        )
        for candidate in candidates
    ]


def own_batch_size(spec: SystemSpec) -> int:
    """Return the batch size that a baseline comes with."""
    embeds, reranks = _OWN_BATCH_SIZES.get(spec.system, (_OTHERS_BATCH_SIZE, _OTHERS_BATCH_SIZE))
    return reranks if spec.reranks else embeds


def variants_here(bundle: Bundle, device: str) -> list[Variant]:
    """Return the variants of a bundle that this machine can run on a device.

    Raises:
        BenchError: If there are variants for the device, but none can run.
    """
    there = [v for v in bundle.manifest.variants if v.device == device_kind(device)]
    here = [variant for variant in there if unavailable_reason(variant.requirement) is None]
    if there and not here:
        reason = unavailable_reason(there[0].requirement)
        raise BenchError(f"nothing of {bundle.path.name} runs on {device}: {reason}")
    return here


def _cannot_take_part(system: str, ours: SystemSpec) -> str | None:
    """Return why a baseline cannot be timed on this machine; None if it can."""
    if system in INT8_BASELINES and ours.model_class != ENCODER_ONLY_BASE:
        return f"it is compared with models of the class {ENCODER_ONLY_BASE} only"
    missing = [package for package in _PACKAGES[system] if not _installed(package)]
    if missing:
        return f"{' and '.join(missing)} is not installed; pip install 'bge-runtime[bench]'"
    extensions = vector_extensions()
    if system.endswith("-bf16") and extensions and _BF16_IN_PYTORCH.isdisjoint(extensions):
        # Nobody would choose it: with AVX2 bge-large took minutes for 32 paragraphs.
        return "PyTorch has no fast products in bf16 on this processor (no AVX512, no ARM bf16)"
    return None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
