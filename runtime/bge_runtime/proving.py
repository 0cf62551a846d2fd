"""Run an engine so that whatever is wrong with it shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from bge_runtime import cache
from bge_runtime.batching import pad_batch
from bge_runtime.bundle import Bundle, Reference
from bge_runtime.cpus import cpu_model
from bge_runtime.engines import Engine, EngineInfo, open_engine
from bge_runtime.manifest import Variant
from bge_runtime.parity import Parity, compare
from bge_runtime.versions import ENGINE_PACKAGES, installed_versions

_ROWS = 4
_KIND = "parity"


def measure(
    bundle: Bundle, variant: Variant, reference: Reference | None = None
) -> tuple[EngineInfo, Parity]:
    """Measure how far a variant is from PyTorch's vectors, on this machine.

    Args:
        bundle: The bundle.
        variant: One of its variants.
        reference: PyTorch's vectors; None for those of the bundle.

    Returns:
        What was in force, and the distance.

    Raises:
        BundleError: If the bundle's reference cannot be read.
        EngineError: If this machine cannot run the variant, or the engine fails.
    """
    reference = reference or bundle.reference()
    engine = open_engine(bundle, variant)
    vectors = padded_vectors(
        engine, reference.token_ids, pad_token_id=bundle.manifest.model.pad_token_id
    )
    return engine.info, compare(vectors, reference.vectors)


def measure_once(bundle: Bundle, variant: Variant) -> Parity:
    """Measure as `measure` does, unless this machine has done so before.

    The result is remembered for these very files, versions of the engines and model of
    the processor.
    """
    graph = bundle.graph(variant.graph)
    files = [bundle.manifest.files[name].sha256 for name in (graph.file, graph.weights)]
    described = asdict(replace(variant, parity=None))
    key = json.dumps([described, files, installed_versions(ENGINE_PACKAGES), cpu_model()])
    known = cache.recall(_KIND, key)
    # Whatever is wrong with a note, the engine itself can be measured.
    with contextlib.suppress(TypeError, LookupError, ValueError):
        return Parity.from_json(known)
    _, parity = measure(bundle, variant)
    cache.note(_KIND, key, asdict(parity))
    return parity


def padded_vectors(
    engine: Engine, token_ids: Sequence[NDArray[np.int64]], *, pad_token_id: int
) -> NDArray[np.float32]:
    """Compute pooled vectors in batches where short and long texts meet.

    The runtime's own batches hold next to no padding, and would not notice an ignored
    mask.

    Args:
        engine: The engine.
        token_ids: Tokens of each text, special tokens included. At least one text.
        pad_token_id: Id that fills shorter rows.

    Returns:
        Vectors as they leave the graph, in input order. Shape: ``(len(token_ids), dim)``.

    Raises:
        InferenceError: If the engine fails.
    """
    order = np.argsort([len(ids) for ids in token_ids], kind="stable")
    count = -(-len(order) // _ROWS)
    rows = [order[number::count] for number in range(count)]
    parts = []
    for batch in rows:
        ids, mask = pad_batch([token_ids[row] for row in batch], pad_token_id=pad_token_id)
        parts += engine.run(ids, mask, ["sentence_embedding"])
    vectors: NDArray[np.float32] = np.concatenate(parts)[np.argsort(np.concatenate(rows))]
    return vectors
