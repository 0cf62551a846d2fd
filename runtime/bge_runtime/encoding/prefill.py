"""Prefill for causal models: a prefix is computed once, and a long text in chunks.

A token of a causal model sees only the tokens before it, so its keys and values do not depend on
what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import present_name
from bge_runtime.engines import Engine

LONG_TOKENS = 1024
"""Longest text that is run in one piece. The attention scores of all pairs of tokens take 134 MB a
layer with 32 heads at this length, and 64 times that at 8192 tokens."""

CHUNK_TOKENS = 512
"""Tokens of a chunk: the batch size that is fastest on two cores."""

Past = Sequence[NDArray[np.float32]]
"""Keys and values of some tokens, one array for each name in ``Engine.past_names``.
Shape: ``(1, kv_heads, tokens, head_dim)`` each, C-contiguous."""


def prefill(engine: Engine, tokens: NDArray[np.int64], past: Past | None = None) -> Past:
    """Return the keys and values of a text's tokens.

    Args:
        engine: Engine of a causal model.
        tokens: Token ids; at least one. Shape: ``(tokens,)``.
        past: Keys and values of the tokens before them.

    Returns:
        Keys and values of ``past`` and ``tokens`` together.

    Raises:
        InferenceError: If the engine fails.
    """
    names = [present_name(name) for name in engine.past_names]
    step = CHUNK_TOKENS if len(tokens) > LONG_TOKENS else len(tokens)
    known = None if past is None else list(past)
    for start in range(0, len(tokens), step):
        ids = np.ascontiguousarray(tokens[None, start : start + step])
        presents = engine.run(ids, np.ones_like(ids), names, past=known)
        if known is None:
            known = [np.ascontiguousarray(present) for present in presents]
        else:
            # One after the other, so that only one array is in memory twice.
            for index in range(len(known)):
                known[index] = np.concatenate([known[index], presents[index]], axis=2)
    assert known is not None
    return known


def is_long(engine: Engine, input_ids: NDArray[np.int64]) -> bool:
    """Return whether a batch has to be run in chunks: long texts of a causal model."""
    return bool(engine.past_names) and input_ids.shape[1] > LONG_TOKENS


def run_in_chunks(
    engine: Engine,
    input_ids: NDArray[np.int64],
    attention_mask: NDArray[np.int64],
    outputs: Sequence[str],
    *,
    past: Past | None,
) -> list[NDArray[np.float32]]:
    """Run the long texts of a batch one by one, each in chunks.

    Args:
        engine: Engine of a causal model.
        input_ids: Token ids behind ``past``. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
        outputs: Names of the outputs to compute, each with one row for a text.
        past: Keys and values of the tokens before every text, if there are any.

    Returns:
        The outputs in the order asked for.

    Raises:
        InferenceError: If the engine fails.
    """
    rows = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        tokens = ids[: int(mask.sum())]
        cut = len(tokens) - min(CHUNK_TOKENS, len(tokens))
        before = prefill(engine, tokens[:cut], past) if cut else past
        last = np.ascontiguousarray(tokens[None, cut:])
        rows.append(engine.run(last, np.ones_like(last), outputs, past=before))
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]
