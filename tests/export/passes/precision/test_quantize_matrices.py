"""Matrices and embeddings in 8 bits stay close to those in 32."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.graphs import count_operators, run_graph


@given(
    seed=st.integers(0, 99),
    inputs=st.sampled_from([16, 48, 384]),
    outputs=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
)
def test_a_quantized_matrix_is_within_half_a_step(
    seed: int, inputs: int, outputs: int, scale: float
):
    from bge_export.passes import block_of, quantize

    matrix = np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32) * scale
    values, scales = quantize(matrix.astype(np.float32), block=block_of(inputs))
    assert values.dtype == np.int8
    assert len(matrix) % len(scales) == 0
    steps = np.repeat(scales, len(matrix) // len(scales), axis=0)
    assert (np.abs(values * steps - matrix) <= steps * 0.5001).all()


@given(
    seed=st.integers(0, 99),
    static=st.booleans(),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 2.0]),
)
def test_rounding_is_within_half_a_step(seed: int, static: bool, size: float, shift: float):
    from bge_export.passes import QuantizedInput

    rng = np.random.default_rng(seed)
    x = ((rng.normal(size=(7, 256)) + shift) * size).astype(np.float32)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255
    form = QuantizedInput(
        smoothing=np.ones(256, np.float32),
        matrices=[],
        scale=step if static else None,
        zero_point=round(-low / step) if static else 0,
    )
    blocks = np.abs(x).reshape(7, 2, 128).max(axis=2)
    steps = step if static else np.repeat(blocks / 127, 128, axis=1)
    # Of a static scale the ends may be cut off by half a step more, since zero is a whole number.
    assert (np.abs(form.round(x) - x) <= steps * (1.001 if static else 0.501)).all()


@pytest.mark.parametrize("static", [True, False])
def test_quantize_matrices(traced, static: bool):
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from bge_export.encoder.int8.candidates import Samples, make_candidate
    from bge_export.graph_builder import read_constant
    from bge_export.passes import QuantizeEmbeddings, QuantizeMatrices, matrices_by_input
    from bge_export.targets import INT8

    model = traced("cls")
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in INT8.outputs]
    for graph_pass in (*INT8.passes(), RemoveUnusedNodesPass()):
        graph_pass(model)
    before = run_graph(model)
    rng, forms = np.random.default_rng(0), {}
    for x, nodes in matrices_by_input(model).items():
        matrices = [read_constant(node.inputs[1]) for node in nodes]
        rows = rng.normal(size=(300, len(matrices[0]))).astype(np.float32)
        limit = np.full(rows.shape[1], 8, np.float32)
        samples = Samples(lowest=-limit, highest=limit, rows=rows)
        forms[x] = make_candidate(samples, matrices, static=static)
    assert QuantizeMatrices(forms)(model).modified
    counts = count_operators(model)
    rounded = len(forms) if static else 0
    assert counts["DequantizeLinear"] == 18 + rounded  # six matrices in each of three layers
    assert counts.get("QuantizeLinear", 0) == rounded
    after = run_graph(model)
    cosine = (
        (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    )
    assert 0.98 < cosine.min() < 0.999999
    assert QuantizeEmbeddings()(model).modified
    RemoveUnusedNodesPass()(model)
    large = [
        value.name
        for value in model.graph.initializers.values()
        if value.const_value.dtype.name == "FLOAT" and value.const_value.size > 100_000
    ]
    assert not large
    again = run_graph(model)
    assert np.abs(again - after).max() < 0.05 * np.abs(after).max()
