"""Which texts go into a batch together.

The sizes at which an engine is fastest are its `BatchLimits`; how much is sorted at once is decided
in ``pipeline.py``, and parallel batches in ``parallel.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_PADDED_TOKENS = 1024
"""Longest text that may be batched with shorter ones. Longer texts are batched only with texts of
the same length: without padding, attention needs no mask, and no memory for the scores of all pairs
of tokens (64 MB for a text of this length with 16 heads, 64 times that at 8192 tokens)."""


def plan_batches(
    lengths: Sequence[int] | NDArray[np.integer],
    *,
    max_tokens: int,
    max_rows: int,
    max_padding: int,
) -> list[NDArray[np.intp]]:
    """Group texts into batches of similar length, longest first.

    Each text is in exactly one batch. Going down the sorted lengths, a batch is closed when another
    row would exceed ``max_tokens`` or ``max_rows``, or when its padding would cost more than
    starting a new batch. A text longer than ``max_tokens`` gets a batch of its own; one longer than
    `MAX_PADDED_TOKENS` is not padded.

    Args:
        lengths: Tokens of each text, at least 1. Shape: ``(n,)``.
        max_tokens: Maximum tokens of a batch, padding included.
        max_rows: Maximum texts of a batch.
        max_padding: Maximum padding tokens of a batch.

    Returns:
        Positions of the texts of each batch, longest text first in each.

    Raises:
        ValueError: If a limit is below 1 (padding: below 0).
    """
    if max_tokens < 1 or max_rows < 1 or max_padding < 0:
        raise ValueError(
            "a batch needs max_tokens >= 1, max_rows >= 1 and max_padding >= 0, "
            f"but got {max_tokens}, {max_rows} and {max_padding}"
        )
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches: list[NDArray[np.intp]] = []
    start, padding = 0, 0
    for position, size in enumerate(sizes[order].tolist()):
        rows = position - start
        longest = int(sizes[order[start]])
        full = (rows + 1) * longest > max_tokens or rows == max_rows
        allowed = max_padding if longest <= MAX_PADDED_TOKENS else 0
        if rows and (full or padding + longest - size > allowed):
            batches.append(order[start:position])
            start, padding = position, 0
        else:
            padding += longest - size
    if len(order):
        batches.append(order[start:])
    return batches


def balanced_batch_tokens(lengths: Sequence[int], max_tokens: int, *, streams: int) -> int:
    """Return the token limit that makes the number of batches a multiple of ``streams``.

    Args:
        lengths: Tokens of each text.
        max_tokens: Maximum tokens of a batch; texts that fit into one batch are not split.
        streams: Batches that are computed at the same time.
    """
    tokens = sum(lengths)
    if streams == 1 or tokens <= max_tokens:
        return max_tokens
    batches = streams * -(-tokens // (streams * max_tokens))
    # A batch is rarely filled exactly. Without room for almost one more text, every batch would be
    # slightly smaller, and one more batch would be needed.
    return min(max_tokens, -(-tokens // batches) + tokens // len(lengths) - 1)
