"""Compare the vectors, or scores, of every variant of a bundle with those of PyTorch libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bge_runtime
from bge_bench.systems.base import CLASSES, Item, SystemSpec, open_system, quiet
from bge_bench.systems.lineup import variants_here
from bge_bench.systems.outputs import AnyParity, compare_outputs, tolerance
from bge_bench.systems.rerankers import column
from bge_runtime import FlagModel
from bge_runtime.bundle import LOGITS, SENTENCE_EMBEDDING, Bundle
from bge_runtime.encoding import TextTokenizer
from bge_runtime.engines import Engine, EngineInfo, EngineOptions, open_engine
from bge_runtime.sources import RERANKER_CLASSES
from bge_runtime.variants import padded_outputs

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
        call: `FLAG_MODEL`, or a reranker's class, for a call of that class, with its own choice
            of variant and of batches; `ALONE` for a call for each text, with ``cuda_graphs``;
            `PADDED` for a variant's engine itself, run on batches in which short and long texts
            meet.
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
    parity: AnyParity
    failures: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary with the figures and their tolerance."""
        limits = tolerance(self.parity, self.info.precision)
        return {**asdict(self), "tolerance": limits, "passed": not self.failures}


def measure_parity(
    bundle: Bundle,
    checkpoint: Path,
    references: Sequence[str],
    texts: Sequence[Item],
    *,
    device: str = "cpu",
    step: Callable[[str], object],
) -> list[Row]:
    """Compare a bundle with its references, one after another in this process.

    Args:
        bundle: The bundle.
        checkpoint: The checkpoint it was made from.
        references: Names from `VECTOR_REFERENCES`.
        texts: At least two different texts, or for a reranker pairs.
        device: Device of all; the references compute in fp32.
        step: Called with a message before each step.

    Returns:
        One row for each reference and for the model's class, and for each variant of the device
        that this machine runs.

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
    reranks = model.model_class in RERANKER_CLASSES
    rows: list[Row] = []

    def add(call: str, engine: Engine, outputs: NDArray[np.float32]) -> None:
        for reference in expected:
            parity = compare_outputs(outputs, reference.outputs, reranks=reranks)
            rows.append(_row(call, engine.info, parity, reference))

    run = _run_reranker if reranks else _run_embedder
    tokens = run(bundle, texts, max_length, device, add, step)
    output = LOGITS if reranks else SENTENCE_EMBEDDING
    for variant in here:
        step(f"running {variant.name}")
        engine = open_engine(bundle, variant, EngineOptions(device=device, outputs=(output,)))
        found = padded_outputs(engine, tokens, [output], pad_token_id=model.pad_token_id)
        add(PADDED, engine, np.stack(found[output]))
    return rows


def _run_embedder(
    bundle: Bundle,
    texts: Sequence[Any],
    max_length: int,
    device: str,
    add: Callable[[str, Engine, NDArray[np.float32]], None],
    step: Callable[[str], object],
) -> list[NDArray[np.int64]]:
    """Compute the vectors of ``FlagModel``, and return the tokens of texts."""
    step("running FlagModel")

    def opened(**options: Any) -> FlagModel:
        with quiet():  # without the warning about random weights, which are common here
            return FlagModel(
                str(bundle.path), devices=device, passage_max_length=max_length, **options
            )

    flag_model = opened(use_fp16=device != "cpu")
    add(FLAG_MODEL, flag_model.engine, flag_model.encode(texts, show_progress_bar=False))
    del flag_model
    if device != "cpu" and any(
        variant.engine == "onnxruntime" for variant in variants_here(bundle, device)
    ):
        step("running FlagModel with CUDA graphs")
        flag_model = opened(engine="onnxruntime", cuda_graphs=True)
        vectors = np.stack([flag_model.encode(text) for text in texts])
        add(ALONE, flag_model.engine, vectors)
        del flag_model
    return TextTokenizer(bundle.tokenizer_file).encode(texts, max_length=max_length)


def _run_reranker(
    bundle: Bundle,
    pairs: Sequence[Any],
    max_length: int,
    device: str,
    add: Callable[[str, Engine, NDArray[np.float32]], None],
    step: Callable[[str], object],
) -> list[NDArray[np.int64]]:
    """Compute the scores of a reranker's class, and return the tokens of pairs."""
    name = CLASSES[bundle.manifest.model.model_class]
    step(f"running {name}")
    with quiet():
        reranker = getattr(bge_runtime, name)(
            str(bundle.path), use_fp16=device != "cpu", devices=device, max_length=max_length
        )
    add(name, reranker.engine, column(reranker.compute_score(pairs, show_progress_bar=False)))
    return [reranker.pair_plan(query).tokenize([passage])[0] for query, passage in pairs]


@dataclass(frozen=True)
class _Reference:
    name: str
    in_force: str
    outputs: NDArray[np.float32]


def _reference(
    bundle: Bundle,
    checkpoint: Path,
    name: str,
    texts: Sequence[Item],
    *,
    device: str,
    step: Callable[[str], object],
) -> _Reference:
    """Return a reference's outputs. Its weights are freed, so that two copies are never held."""
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
            model_class=model.model_class,
        )
    )
    return _Reference(system.name, system.in_force, system.encode(texts))


def _row(call: str, info: EngineInfo, parity: AnyParity, reference: _Reference) -> Row:
    return Row(
        call=call,
        info=info,
        reference=reference.name,
        reference_in_force=reference.in_force,
        parity=parity,
        failures=tuple(parity.failures(info.precision)),
    )
