"""Quantize a graph: static scales where they hold, scales chosen at run time elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bge_export.encoder.calibration import run_texts
from bge_export.encoder.int8.candidates import Samples, make_candidate
from bge_export.encoder.int8.sensitivity import Sensitivity, read_matrix
from bge_export.encoder.int8.texts import CALIBRATION_SEED
from bge_export.graph_builder import is_op
from bge_export.passes import (
    QuantizedInput,
    QuantizeEmbeddings,
    QuantizeMatrices,
    matrices_by_input,
)

_ROWS = 2048
"""Tokens whose values are kept, about four for each channel of bge-base."""

_TEXTS = 8
"""Texts on which the error of each product is measured."""

_TOKENS = 96
"""Most tokens of these texts: the graph runs them once or twice for each product."""

_LIMIT = 0.0185
"""Limit of the predicted error, as a share of the distance between texts. On XQuAD in six languages
the worst text's error was 1.5 times (English) to 3.6 times (Arabic) as large for
all-MiniLM-L6-v2."""

_SLACK = 1.02
"""Where scales at run time alone just miss the limit: how much more static scales may add."""

_REACHABLE = 1.2
"""Above so many limits, even with all scales chosen at run time, the model amplifies errors, as
those with random weights do (0.026 of bge-small's shape; trained ones have 0.018)."""

_GATE_LIMIT = 0.06
"""Limit for these, which the parity gate allows."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What was decided for a graph.

    Attributes:
        static: Values with a static scale.
        dynamic: Values whose scales are chosen at run time.
        error: Predicted error of the outputs, as a share of the distance between texts.
        texts: Number of calibration texts.
        seed: Seed of their choice, and of the tokens whose values are kept.
    """

    static: int
    dynamic: int
    error: float
    texts: int
    seed: int = CALIBRATION_SEED


def quantize_model(
    model: ir.Model,
    token_ids: Sequence[NDArray[np.int64]],
    *,
    folder: Path,
    report: Callable[[str], None] = lambda _: None,
) -> Quantization:
    """Store the matrices and embeddings of a graph in 8 bits, in place.

    A static scale is faster: engines round a value once, and multiply whole numbers without a
    pause. But a value beyond those of the calibration texts is cut off. On XQuAD in six languages,
    the outputs of all-MiniLM-L6-v2's LayerNorms were up to 1.3 times as large as on these texts,
    those of its attention 2.2 times, and those of its Gelu 11 times. So only values that come from
    a LayerNorm get a static scale, those with the smallest increase of the error for their work
    first, as long as the predicted error is small enough.

    Args:
        model: The graph.
        token_ids: Tokens of the calibration texts.
        folder: Folder in which the graph is written for the runs.
        report: Told of each step.
    """
    report("reading the values that are multiplied")
    products = matrices_by_input(model)
    samples = _observe(model, list(products), token_ids, folder=folder)
    candidates: dict[ir.Value, list[QuantizedInput]] = {}
    for number, (x, nodes) in enumerate(products.items(), start=1):
        report(f"rounding matrices ({number} of {len(products)})")
        matrices = [read_matrix(node) for node in nodes]
        found = samples.pop(x)
        ways = (False, True) if comes_from_norm(x) else (False,)
        candidates[x] = [make_candidate(found, matrices, static=static) for static in ways]
    report("measuring the error of each")
    short = sorted((ids for ids in token_ids if len(ids) <= _TOKENS), key=len) or token_ids
    few = short[:: max(1, len(short) // _TEXTS)]
    errors = Sensitivity(model, products, folder=folder).measure(candidates, few)
    work = {x: _work(nodes) for x, nodes in products.items()}
    static = choose_static(errors, work)
    chosen = {x: forms[x in static] for x, forms in candidates.items()}
    total = sum(found[x in static] for x, found in errors.items())
    QuantizeMatrices(chosen)(model)
    QuantizeEmbeddings()(model)
    return Quantization(
        static=len(static),
        dynamic=len(chosen) - len(static),
        error=float(np.sqrt(total)),
        texts=len(token_ids),
    )


def choose_static(
    errors: Mapping[ir.Value, Sequence[float]], work: Mapping[ir.Value, int]
) -> set[ir.Value]:
    """Return the values that get a static scale.

    Args:
        errors: Squared error of the outputs with scales chosen at run time, and with a static
            scale where that is possible.
        work: Multiplications for each token.
    """
    least = sum(min(found) for found in errors.values())
    exact = least <= (_REACHABLE * _LIMIT) ** 2
    limit = max(_LIMIT, _SLACK * float(np.sqrt(least))) if exact else _GATE_LIMIT
    costs = {x: found[1] - found[0] for x, found in errors.items() if len(found) > 1}
    total = sum(found[0] for found in errors.values())
    chosen: set[ir.Value] = set()
    for x in sorted(costs, key=lambda x: costs[x] / work[x]):
        if costs[x] > 0 and total + costs[x] > limit**2:
            break
        chosen.add(x)
        total += costs[x]
    return chosen


def comes_from_norm(x: ir.Value) -> bool:
    """Return whether a value is the output of a LayerNorm, or a part of it."""
    node = x.producer()
    while is_op(node, "Gather", "Slice", "Reshape", "Unsqueeze", "Squeeze"):
        assert node is not None
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return is_op(node, "LayerNormalization")


def _work(nodes: Sequence[ir.Node]) -> int:
    shapes = [node.inputs[1].const_value.shape.numpy() for node in nodes]  # type: ignore[union-attr]
    return sum(inputs * outputs for inputs, outputs in shapes)


def _observe(
    model: ir.Model,
    values: Sequence[ir.Value],
    token_ids: Sequence[NDArray[np.int64]],
    *,
    folder: Path,
) -> dict[ir.Value, Samples]:
    """Run texts and return what is known of values, with an equal share of each text's tokens."""
    share = -(-_ROWS // len(token_ids))
    generator = np.random.default_rng(CALIBRATION_SEED)
    lowest: list[NDArray[np.float32]] = []
    highest: list[NDArray[np.float32]] = []
    rows: list[list[NDArray[np.float32]]] = [[] for _ in values]
    for arrays in run_texts(model, values, token_ids, folder=folder):
        flat = [array.reshape(-1, array.shape[-1]) for array in arrays]
        low, high = [array.min(axis=0) for array in flat], [array.max(axis=0) for array in flat]
        lowest = list(map(np.minimum, lowest or low, low))
        highest = list(map(np.maximum, highest or high, high))
        for found, array in zip(rows, flat, strict=True):
            count = min(share, len(array))
            found.append(array[generator.choice(len(array), size=count, replace=False)])
    return {
        value: Samples(lowest=low, highest=high, rows=np.concatenate(found))
        for value, low, high, found in zip(values, lowest, highest, rows, strict=True)
    }
