"""Run an engine so that whatever is wrong with it shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime.batching import pad_batch
from bge_runtime.engines.base import Engine

_ROWS = 4


def padded_vectors(
    engine: Engine, token_ids: Sequence[NDArray[np.int64]], *, pad_token_id: int
) -> NDArray[np.float32]:
    """Compute pooled vectors in batches where short and long texts meet.

    The runtime's own batches hold next to no padding, and would not notice an ignored
    mask.

    Args:
        engine: The engine.
        token_ids: Tokens of each text, special tokens included. At least one text.
        pad_token_id: Id that fills shorter rows.

    Returns:
        Vectors as they leave the graph, in input order. Shape: ``(len(token_ids), dim)``.

    Raises:
        InferenceError: If the engine fails.
    """
    order = np.argsort([len(ids) for ids in token_ids], kind="stable")
    count = -(-len(order) // _ROWS)
    rows = [order[number::count] for number in range(count)]
    parts = []
    for batch in rows:
        ids, mask = pad_batch([token_ids[row] for row in batch], pad_token_id=pad_token_id)
        parts += engine.run(ids, mask, ["sentence_embedding"])
    vectors: NDArray[np.float32] = np.concatenate(parts)[np.argsort(np.concatenate(rows))]
    return vectors
