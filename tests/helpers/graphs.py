"""Run and compare graphs of the tiny BERT."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np


def run_graph(model: Any, output: str = "sentence_embedding", *, padded: bool = True) -> np.ndarray:
    """Return an output of a graph for a batch of four texts."""
    import onnx_ir as ir
    import onnxruntime as ort

    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 9000, (4, 33))
    lengths = [[33], [20], [7], [2]] if padded else [[33]] * 4
    mask = (np.arange(33) < np.array(lengths)).astype(np.int64)
    feeds = {
        "input_ids": np.where(mask, ids, 0),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
    }
    return np.asarray(session.run([output], feeds)[0])


def count_operators(model: Any) -> Counter[str]:
    """Count the nodes of a graph by operator."""
    return Counter(node.op_type for node in model.graph)


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether vectors differ by rounding only."""
    # Vectors of norm about 7. Another order of summation changes them by 1e-6.
    return float(np.abs(a - b).max()) < 1e-5
