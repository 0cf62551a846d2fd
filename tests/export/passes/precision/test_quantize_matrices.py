"""Matrices in 8 bits stay close to those in 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.graphs import count_operators, run_graph


def channels(rng: np.random.Generator, rows: int, columns: int, *, outlier: float) -> np.ndarray:
    values = rng.normal(size=(rows, columns)).astype(np.float32)
    values[:, 3] *= outlier
    return values


@given(
    seed=st.integers(0, 99),
    inputs=st.sampled_from([16, 48, 384]),
    outputs=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
)
def test_a_quantized_matrix_is_within_half_a_step(
    seed: int, inputs: int, outputs: int, scale: float
):
    from bge_export.passes.precision.quantize_matrices import quantize

    matrix = np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32) * scale
    values, scales = quantize(matrix.astype(np.float32))
    assert values.dtype == np.int8
    assert len(matrix) % len(scales) == 0
    steps = np.repeat(scales, len(matrix) // len(scales), axis=0)
    assert (np.abs(values * steps - matrix) <= steps * 0.5001).all()


def test_smoothing_reduces_an_outlier_of_the_input():
    from bge_export.passes.precision.quantize_matrices import compute_smoothing_scales

    rng = np.random.default_rng(0)
    x, matrix = channels(rng, 50, 64, outlier=100), channels(rng, 20, 64, outlier=1).T
    scales = compute_smoothing_scales(np.abs(x).max(axis=0), [matrix])
    assert np.isclose(np.log(scales).mean(), 0, atol=1e-5)
    assert np.allclose((x / scales) @ (matrix * scales[:, None]), x @ matrix, rtol=1e-3, atol=1e-2)
    spread = np.abs(x).max(axis=0)
    smoothed = spread / scales
    assert spread.max() / np.median(spread) > 50
    assert smoothed.max() / np.median(smoothed) < 15


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_quantize_matrices(traced, pooling: str, tmp_path: Path):
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from bge_export.encoder.calibration import watch_inputs
    from bge_export.passes import QuantizeMatrices
    from bge_export.targets import INT8

    model = traced(pooling)
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in INT8.outputs]
    for graph_pass in (*INT8.passes(), RemoveUnusedNodesPass()):
        graph_pass(model)
    before = run_graph(model)
    tokens = [np.arange(5, 5 + length) * 7 for length in (2, 9, 33)]
    channels = watch_inputs(model, tokens, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert [output.name for output in model.graph.outputs] == list(INT8.outputs)
    assert QuantizeMatrices({x: seen.largest for x, seen in channels.items()})(model).modified
    counts = count_operators(model)
    assert counts["DequantizeLinear"] == 18  # six matrices a layer
    after = run_graph(model)
    cosine = (
        (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    )
    assert 0.99 < cosine.min() < 0.999999
