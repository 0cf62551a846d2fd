"""Ways to compute the products of one value in 8 bits, made from samples of that value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_export.encoder.int8.rounding import round_for_inputs
from bge_export.passes import QuantizedInput, QuantizedMatrix, block_of, quantize

_STRENGTHS = (0.5, 0.65, 0.8, 0.95)
"""Shares of the outliers of channels that may be moved into the matrices."""

_MARGIN = 1.25
"""Room for values beyond those of the calibration texts, as a factor of the largest ones. On XQuAD
in six languages, LayerNorms' outputs of all-MiniLM-L6-v2 were 1.0 to 1.3 times as large, those of
multilingual-e5-small up to 1.6 times, in single channels of single tokens."""

_STRIDE = 4
"""Every fourth token decides between strengths; all of them decide how to round."""

_SMALL = np.float32(1e-5)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What is known of a value that is multiplied with matrices.

    Attributes:
        lowest: Smallest value of each channel, over all tokens. Shape: ``(channels,)``.
        highest: Largest one. Shape: ``(channels,)``.
        rows: The value for some tokens. Shape: ``(tokens, channels)``.
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    rows: NDArray[np.float32]


def make_candidate(
    samples: Samples, matrices: Sequence[NDArray[np.float32]], *, static: bool
) -> QuantizedInput:
    """Return the form in 8 bits that changes the products of the samples least.

    Args:
        samples: The value.
        matrices: What it is multiplied with. Shape: ``(inputs, outputs)`` each.
        static: Whether the value has one scale for all tokens, or scales chosen at run time.
    """
    few = samples.rows[::_STRIDE]
    exact = [few @ matrix for matrix in matrices]
    drafts = [
        _draft(samples, matrices, strength=strength, static=static) for strength in _STRENGTHS
    ]
    form = min(drafts, key=lambda draft: _relative_error(draft, few, exact))
    rounded = form.round(samples.rows)
    found = []
    for matrix, draft in zip(matrices, form.matrices, strict=True):
        smooth = matrix * form.smoothing[:, None]
        values = round_for_inputs(smooth, draft.scales, rounded)
        found.append(QuantizedMatrix(values=values, scales=draft.scales))
    return QuantizedInput(
        smoothing=form.smoothing, matrices=found, scale=form.scale, zero_point=form.zero_point
    )


def widen(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """Return a matrix in fp32. Shape: ``(inputs, outputs)``."""
    blocks = len(matrix.scales)
    steps = np.repeat(matrix.scales, len(matrix.values) // blocks, axis=0)
    wide: NDArray[np.float32] = matrix.values * steps
    return wide


def compute_smoothing(
    largest: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]], *, strength: float
) -> NDArray[np.float32]:
    """Balance the magnitude of each channel between a value and its matrices.

    Args:
        largest: Largest magnitude of each channel of the value. Shape: ``(inputs,)``.
        matrices: Matrices that multiply it. Shape: ``(inputs, outputs)`` each.
        strength: SmoothQuant's alpha (arXiv:2211.10438): 0 leaves the value as it is, 1 makes the
            magnitude of all its channels equal.

    Returns:
        Divisors of the value, with a geometric mean of 1. Shape: ``(inputs,)``.
    """
    weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    scales = np.maximum(largest, _SMALL) ** strength / np.maximum(weights, _SMALL) ** (1 - strength)
    balanced: NDArray[np.float32] = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
    return balanced


def _draft(
    samples: Samples, matrices: Sequence[NDArray[np.float32]], *, strength: float, static: bool
) -> QuantizedInput:
    """Return a form whose matrices are rounded to the nearest."""
    largest = np.maximum(np.abs(samples.lowest), np.abs(samples.highest))
    smoothing = compute_smoothing(largest, matrices, strength=strength)
    rounded = []
    for matrix in matrices:
        block = len(matrix) if static else block_of(len(matrix))
        smooth = matrix * smoothing[:, None]
        values, scales = quantize(smooth, block=block)
        rounded.append(QuantizedMatrix(values=values, scales=scales))
    if not static:
        return QuantizedInput(smoothing=smoothing, matrices=rounded)
    low = min(float((samples.lowest / smoothing).min()), 0.0) * _MARGIN
    high = max(float((samples.highest / smoothing).max()), 0.0) * _MARGIN
    scale = max(high - low, float(_SMALL)) / 255
    zero = round(-low / scale)
    return QuantizedInput(smoothing=smoothing, matrices=rounded, scale=scale, zero_point=zero)


def _relative_error(
    form: QuantizedInput, rows: NDArray[np.float32], exact: Sequence[NDArray[np.float32]]
) -> float:
    """Return the mean over tokens of the squared error of the products, relative to them.

    Relative for each token, since a few special tokens have much larger values than all others.
    """
    rounded = form.round(rows)
    shares = [
        ((rounded @ widen(matrix) - product) ** 2).sum(axis=1)
        / np.maximum((product**2).sum(axis=1), _SMALL)
        for matrix, product in zip(form.matrices, exact, strict=True)
    ]
    return float(np.mean(shares))
