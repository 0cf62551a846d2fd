"""A bundle written by bge-export 0.1.0 opens, and gives the vectors that bge-runtime 0.1.0 gave.

It is a BERT of one layer with random weights and 240 tokens, exported for every CPU target.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bge_runtime import Bundle, FlagModel

DATA = Path(__file__).parent / "data"
BUNDLE = DATA / "bundle-0.1.0"
VECTORS = DATA / "bundle-0.1.0.npy"

TEXTS = [
    "",
    "a",
    "the quick brown fox jumps over the lazy dog",
    "一个测试 two words",
    "Numbers 1, 2 and 3. " * 30,
]

ROUNDING = 1e-6
"""fp32 in another order of summation. On one machine the vectors of ONNX Runtime were the same in
every bit; which bits they are depends on the processor. OpenVINO's differed by 1.2e-7."""


def test_the_files_are_those_that_were_written():
    Bundle.open(BUNDLE).check_files(hash_weights=True)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_vectors_are_those_of_the_version_that_wrote_it(engine):
    model = FlagModel(str(BUNDLE), engine=engine, precision="fp32", devices="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), np.load(VECTORS), rtol=0, atol=ROUNDING)
