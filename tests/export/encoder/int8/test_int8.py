"""Scales in int8: rounding, smoothing, and where static scales hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def outlying(rng: np.random.Generator, rows: int, columns: int, *, outlier: float) -> np.ndarray:
    values = rng.normal(size=(rows, columns)).astype(np.float32)
    values[:, 3] *= outlier
    return values


@settings(deadline=None)
@given(seed=st.integers(0, 50), blocks=st.sampled_from([1, 2]), correlated=st.booleans())
def test_rounding_for_inputs_makes_products_more_exact(seed: int, blocks: int, correlated: bool):
    from bge_export.encoder.int8.rounding import round_for_inputs
    from bge_export.passes import quantize

    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(300, 64)).astype(np.float32)
    if correlated:
        inputs = (inputs[:, :8] @ rng.normal(size=(8, 64)) + 0.1 * inputs).astype(np.float32)
    matrix = rng.normal(size=(64, 24)).astype(np.float32)
    nearest, scales = quantize(matrix, block=64 // blocks)
    steps = np.repeat(scales, 64 // blocks, axis=0)
    rounded = round_for_inputs(matrix, scales, inputs)
    assert rounded.dtype == np.int8

    def error(values: np.ndarray) -> float:
        return float(((inputs @ (values * steps - matrix)) ** 2).mean())

    assert error(rounded) < error(nearest) * (0.7 if correlated else 1.05)


def test_inputs_that_are_all_zero_leave_the_nearest():
    from bge_export.encoder.int8.rounding import round_for_inputs
    from bge_export.passes import quantize

    matrix = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    nearest, scales = quantize(matrix, block=32)
    rounded = round_for_inputs(matrix, scales, np.zeros((4, 32), np.float32))
    assert (rounded == nearest).all()


def test_smoothing_reduces_an_outlier_of_the_input():
    from bge_export.encoder.int8.candidates import compute_smoothing

    rng = np.random.default_rng(0)
    x, matrix = outlying(rng, 50, 64, outlier=100), outlying(rng, 20, 64, outlier=1).T
    largest = np.abs(x).max(axis=0)
    for strength in (0.5, 0.95):
        scales = compute_smoothing(largest, [matrix], strength=strength)
        assert np.isclose(np.log(scales).mean(), 0, atol=1e-5)
        same = (x / scales) @ (matrix * scales[:, None])
        assert np.allclose(same, x @ matrix, rtol=1e-3, atol=1e-2)
        smoothed = largest / scales
        assert smoothed.max() / np.median(smoothed) < largest.max() / np.median(largest) / 3


def test_static_scales_are_chosen_while_the_error_is_small():
    from bge_export.encoder.int8.quantize import _GATE_LIMIT, _LIMIT, choose_static

    low, high = _LIMIT**2, _GATE_LIMIT**2
    errors = {
        "cheap": [low / 10, low / 9],
        "dear": [low / 10, 10 * low],
        "better": [low / 5, low / 10],
        "no norm": [low / 10],
    }
    work = dict.fromkeys(errors, 1000)
    assert choose_static(errors, work) == {"cheap", "better"}
    # A little more is allowed where scales at run time just miss the limit.
    near = {"a": [low / 2, 0.52 * low], "b": [0.6 * low, 0.9 * low]}
    assert choose_static(near, dict.fromkeys(near, 1000)) == {"a"}
    # Where scales at run time miss the limit too, the gate's is what counts.
    many = {name: [2 * low, 2.1 * low] for name in ("a", "b", "c")}
    assert 6 * low < high
    assert choose_static(many, dict.fromkeys(many, 1000)) == {"a", "b", "c"}


def test_calibration_texts_are_seeded_and_not_those_of_the_gate():
    from bge_export.encoder.int8.texts import calibration_texts
    from bge_export.parity_texts import PARITY_TEXTS

    texts = calibration_texts()
    assert texts == calibration_texts()
    assert len(texts) == len(set(texts)) > 80
    assert max(map(len, texts)) > 1000
    common = set(texts) & set(PARITY_TEXTS)
    assert len(common) < 12  # short sentences of the pairs only
    assert not any(len(text) > 100 for text in common)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_quantize_model(traced, pooling: str, tmp_path: Path):
    """The predicted error is near the measured one."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from bge_export.encoder.calibration import run_texts
    from bge_export.encoder.int8 import quantize_model
    from bge_export.encoder.int8.quantize import comes_from_norm
    from bge_export.passes import matrices_by_input
    from bge_export.targets import INT8

    model = traced(pooling)
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name in INT8.outputs]
    for graph_pass in (*INT8.passes(), RemoveUnusedNodesPass()):
        graph_pass(model)
    norms = [x for x in matrices_by_input(model) if comes_from_norm(x)]
    assert len(norms) == (7 if pooling == "cls" else 6)  # the last layer's query is [CLS] only
    tokens = [np.arange(5, 5 + length) * 7 % 900 for length in (2, 9, 33, 12, 20, 5)]

    def vectors() -> np.ndarray:
        rows = run_texts(model, model.graph.outputs, tokens, folder=tmp_path)
        return np.concatenate([outputs[0] for outputs in rows])

    before, reports = vectors(), []
    found = quantize_model(model, tokens, folder=tmp_path, report=reports.append)
    RemoveUnusedNodesPass()(model)
    assert not list(tmp_path.iterdir())
    assert [output.name for output in model.graph.outputs] == list(INT8.outputs)
    assert found.static + found.dynamic == (13 if pooling == "cls" else 12)
    assert found.texts == 6
    assert reports
    after = vectors()
    error = np.linalg.norm(after - before, axis=1).mean()
    between = np.linalg.norm(before[:, None] - before[None], axis=2)
    share = error / np.median(between[np.triu_indices(6, 1)])
    assert 0 < share < 0.1
    assert 0.2 < share / max(found.error, 1e-9) < 5
