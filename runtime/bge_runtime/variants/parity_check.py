"""Measure how far a variant's vectors or scores are from PyTorch's, on this machine."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import (
    COLBERT_TOKENS,
    COLBERT_VECS,
    HEAD_OUTPUTS,
    LOGITS,
    SENTENCE_EMBEDDING,
    TOKEN_WEIGHTS,
    UNIFORM_LENGTH,
    Bundle,
    PairReference,
    Parity,
    Reference,
    ScoreParity,
    Variant,
    compare,
    compare_scores,
    parse_parity,
)
from bge_runtime.engines import (
    Engine,
    EngineInfo,
    EngineOptions,
    engine_package,
    load_engine,
    open_engine,
    pad_batch,
)
from bge_runtime.system import KeyLocks, cache, cpu_model, nvidia, owners, vector_extensions

_ROWS = 4
_KIND = "parity"
_measuring = KeyLocks()


def measure_parity(
    bundle: Bundle, variant: Variant, reference: Reference | PairReference | None = None
) -> tuple[EngineInfo, Parity | ScoreParity]:
    """Measure how far a variant's vectors, or a reranker's scores, are from PyTorch's, here.

    A graph with a branch for texts of one length is measured in both branches.

    Args:
        bundle: The bundle.
        variant: One of its variants.
        reference: PyTorch's outputs; None for those of the bundle.

    Returns:
        What ran, and the distance: for a model of M3's class the worst of its outputs, where
        weights of tokens are compared without scaling.

    Raises:
        BundleError: If the bundle's reference cannot be read.
        EngineError: If this machine cannot run the variant, or the engine fails.
    """
    reference = reference or bundle.reference()
    names = _outputs_of(reference)
    branches = UNIFORM_LENGTH in bundle.graph(variant.graph).inputs
    options = EngineOptions(outputs=names, force_uniform_length=branches)
    engine = open_engine(bundle, variant, options)
    pad_token_id = bundle.manifest.model.pad_token_id

    def outputs(rows: int) -> dict[str, list[NDArray[np.float32]]]:
        return padded_outputs(
            engine, reference.token_ids, names, pad_token_id=pad_token_id, rows=rows
        )

    # Batches of several rows have padding, those of one row take the other branch.
    measured = [outputs(rows) for rows in ((_ROWS, 1) if branches else (_ROWS,))]
    if isinstance(reference, PairReference):
        scores = [compare_scores(np.concatenate(it[LOGITS]), reference.logits) for it in measured]
        return engine.info, functools.reduce(ScoreParity.worst, scores)
    distances = [_distance(it, reference) for it in measured]
    return engine.info, functools.reduce(Parity.worst, distances)


def _outputs_of(reference: Reference | PairReference) -> tuple[str, ...]:
    if isinstance(reference, PairReference):
        return (LOGITS,)
    heads = HEAD_OUTPUTS if reference.token_weights is not None else ()
    return (SENTENCE_EMBEDDING, *heads)


def _distance(outputs: Mapping[str, list[NDArray[np.float32]]], reference: Reference) -> Parity:
    parity = compare(np.stack(outputs[SENTENCE_EMBEDDING]), reference.vectors)
    if reference.token_weights is None or reference.colbert_vecs is None:
        return parity
    weights = np.concatenate(outputs[TOKEN_WEIGHTS])
    tokens = np.concatenate([rows for rows in outputs[COLBERT_VECS] if len(rows) < COLBERT_TOKENS])
    return parity.worst(compare(tokens, reference.colbert_vecs)).worst(
        replace(parity, max_error=float(np.abs(weights - reference.token_weights).max()))
    )


def cached_parity(bundle: Bundle, variant: Variant) -> Parity | ScoreParity:
    """Return what `measure_parity` measured on this machine, and measure it the first time.

    The result is cached for the hashes of the files, the engine's wheel and version, and the
    processor; for a GPU's variant also for the GPUs and their driver.
    """
    graph = bundle.graph(variant.graph)
    files = [bundle.manifest.files[name].sha256 for name in (graph.file, graph.weights)]
    described = asdict(replace(variant, parity=None))
    wheels = owners(engine_package(variant.engine)) or str(load_engine(variant.engine).__version__)
    driver = "" if variant.device == "cpu" else repr(nvidia.find_driver())
    key = json.dumps([described, files, wheels, cpu_model(), vector_extensions(), driver])
    with _measuring[key]:
        cached = cache.recall(_KIND, key)
        # If the cached result cannot be read, it is measured again.
        with contextlib.suppress(TypeError, LookupError, ValueError):
            return parse_parity(cached)
        _, parity = measure_parity(bundle, variant)
        cache.note(_KIND, key, parity.to_json())
        return parity


def padded_outputs(
    engine: Engine,
    token_ids: Sequence[NDArray[np.int64]],
    names: Sequence[str],
    *,
    pad_token_id: int,
    rows: int = _ROWS,
) -> dict[str, list[NDArray[np.float32]]]:
    """Compute outputs in batches that mix short and long texts.

    The runtime's own batches have almost no padding, and would not reveal an ignored mask.

    Args:
        engine: The engine.
        token_ids: Tokens of each text, special tokens included. At least one text.
        names: Outputs to compute.
        pad_token_id: Token id of padding.
        rows: Texts of a batch.

    Returns:
        For each output one array for each text in input order, without padding.

    Raises:
        InferenceError: If the engine fails.
    """
    order = np.argsort([len(ids) for ids in token_ids], kind="stable")
    count = -(-len(order) // rows)
    found: dict[str, dict[int, NDArray[np.float32]]] = {name: {} for name in names}
    for number in range(count):
        batch = order[number::count].tolist()
        ids, mask = pad_batch([token_ids[row] for row in batch], pad_token_id=pad_token_id)
        for name, output in zip(names, engine.run(ids, mask, names), strict=True):
            for row, value in zip(batch, output, strict=True):
                tokens = len(token_ids[row])
                length = {TOKEN_WEIGHTS: tokens, COLBERT_VECS: tokens - 1}.get(name)
                found[name][row] = value if length is None else value[:length]
    return {name: [by_row[row] for row in range(len(token_ids))] for name, by_row in found.items()}
