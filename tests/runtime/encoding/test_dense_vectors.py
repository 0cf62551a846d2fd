"""Rows that no batch fills hold nothing."""

from __future__ import annotations

import numpy as np

from bge_runtime.encoding.dense_vectors import DenseVectors


def test_the_row_of_a_rejected_text_is_zero():
    # Memory that was used before: uninitialized, such a row was once too large for float16.
    for _ in range(20):
        used = np.full((60, 48), 1e34, np.float32)
        del used
        found = DenseVectors(60, 48, dtype=np.dtype(np.float32), normalized=False)
        assert not found.vectors.any()
