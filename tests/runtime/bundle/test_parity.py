"""The distance between vectors fails its limits where it is no number."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bge_runtime.bundle.parity import TOLERANCES, Parity, compare

GOOD = Parity(texts=2, min_cosine=1.0, mean_cosine=1.0, max_error=0.0, error_share=0.0)

FIGURES = ("min_cosine", "max_error", "error_share")


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("figure", FIGURES)
def test_nan_is_worse_than_any_number(figure: str, precision: str):
    bad = replace(GOOD, **{figure: math.nan})
    for parity in (bad, bad.worst(GOOD), GOOD.worst(bad), bad.worst(bad)):
        assert parity.failures(precision)
    assert not GOOD.worst(GOOD).failures(precision)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_nan_fails(value: float):
    reference = np.random.default_rng(0).standard_normal((4, 8), np.float32)
    vectors = reference.copy()
    vectors[3, 7] = value
    with np.errstate(invalid="ignore"):
        parity = compare(vectors, reference)
    assert parity.failures("int4")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_null_for_nan(value: float):
    parity = replace(GOOD, error_share=value)
    text = json.dumps(parity.to_json(), allow_nan=False)
    assert json.loads(text)["error_share"] is None
    assert Parity.from_json(json.loads(text)).failures("int4")
    assert Parity.from_json(GOOD.to_json()) == GOOD
