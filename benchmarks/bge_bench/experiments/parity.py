"""Compare the vectors of every variant of a bundle with those of PyTorch libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.systems.base import SystemSpec, open_system, quiet
from bge_bench.systems.lineup import variants_here
from bge_runtime import FlagModel
from bge_runtime.bundle import TOLERANCES, Bundle, Parity, compare
from bge_runtime.encoding import TextTokenizer
from bge_runtime.engines import Engine, EngineInfo, EngineOptions, open_engine
from bge_runtime.variants import padded_vectors

_ROWS = 4
"""Texts in a padded batch."""

_BATCH_SIZES = {"flagembedding": 16, "transformers": 1}
"""transformers runs one text at a time, unpadded; FlagEmbedding batches and pads."""

VECTOR_REFERENCES = tuple(_BATCH_SIZES)
"""Systems that a bundle's vectors can be compared with."""

FLAG_MODEL = "FlagModel"
ALONE = "FlagModel, one by one, CUDA graphs"
PADDED = "padded"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        call: `FLAG_MODEL` for a call of that class, with its own choice of variant and
            of batches; `ALONE` for a call for each text, with ``cuda_graphs``; `PADDED` for a
            variant's engine itself, run on batches in which short and long texts meet.
        info: The variant that ran and what ran it, as the engine reports.
        reference: What it is compared with, and its version.
        reference_in_force: What ran that.
        parity: The distances.
        failures: Limits of the precision's tolerance that are missed.
    """

    call: str
    info: EngineInfo
    reference: str
    reference_in_force: str
    parity: Parity
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with the figures and their tolerance."""
        tolerance = asdict(TOLERANCES[self.info.precision])
        return {**asdict(self), "tolerance": tolerance, "passed": not self.failures}


def measure_parity(
    bundle: Bundle,
    checkpoint: Path,
    references: Sequence[str],
    texts: Sequence[str],
    *,
    device: str = "cpu",
    step: Callable[[str], object],
) -> list[Row]:
    """Compare a bundle with its references, one after another in this process.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint it was made from.
        references: Names from `VECTOR_REFERENCES`.
        texts: At least two different texts.
        device: Device of all; the references compute in fp32.
        step: Called with a message before each step.

    Returns:
        One row for each reference and for ``FlagModel``, and for each variant of the device that
        this machine runs.

    Raises:
        BenchError: If this machine runs none of the variants.
        BgeError: If a variant or reference fails.
    """
    model = bundle.manifest.model
    here = variants_here(bundle, device)
    max_length = min(model.max_length, 512)
    expected = [
        _reference(bundle, checkpoint, name, texts, device=device, step=step) for name in references
    ]
    rows: list[Row] = []

    def add(call: str, engine: Engine, vectors: NDArray[np.float32]) -> None:
        rows.extend(_compare(call, engine.info, vectors, reference) for reference in expected)

    step("running FlagModel")

    def opened(**options: Any) -> FlagModel:
        with quiet():  # without the warning about random weights, which are common here
            return FlagModel(
                str(bundle.path), devices=device, passage_max_length=max_length, **options
            )

    flag_model = opened(use_fp16=device != "cpu")
    add(FLAG_MODEL, flag_model.engine, flag_model.encode(texts, show_progress_bar=False))
    del flag_model
    if device != "cpu" and any(variant.engine == "onnxruntime" for variant in here):
        step("running FlagModel with CUDA graphs")
        flag_model = opened(engine="onnxruntime", cuda_graphs=True)
        vectors = np.stack([flag_model.encode(text) for text in texts])
        add(ALONE, flag_model.engine, vectors)
        del flag_model
    tokens = TextTokenizer(bundle.tokenizer_file).encode(texts, max_length=max_length)
    for variant in here:
        step(f"running {variant.name}")
        engine = open_engine(bundle, variant, EngineOptions(device=device))
        vectors = padded_vectors(engine, tokens, pad_token_id=model.pad_token_id)
        add(PADDED, engine, vectors)
    return rows


@dataclass(frozen=True)
class _Reference:
    name: str
    in_force: str
    vectors: NDArray[np.float32]


def _reference(
    bundle: Bundle,
    checkpoint: Path,
    name: str,
    texts: Sequence[str],
    *,
    device: str,
    step: Callable[[str], object],
) -> _Reference:
    """Return a reference's vectors. Its weights are freed, so that two copies are never held."""
    step(f"running {name}")
    model = bundle.manifest.model
    system = open_system(
        SystemSpec(
            system=name,
            model=str(checkpoint),
            pooling=model.pooling,
            max_length=min(model.max_length, 512),
            batch_size=_BATCH_SIZES[name],
            device=device,
        )
    )
    return _Reference(system.name, system.in_force, system.encode(texts))


def _compare(
    call: str, info: EngineInfo, vectors: NDArray[np.float32], reference: _Reference
) -> Row:
    parity = compare(vectors, reference.vectors)
    return Row(
        call=call,
        info=info,
        reference=reference.name,
        reference_in_force=reference.in_force,
        parity=parity,
        failures=tuple(parity.failures(info.precision)),
    )
