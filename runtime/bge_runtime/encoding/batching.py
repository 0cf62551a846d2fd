"""Which texts go into a batch together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PADDED_AT_MOST = 1024
"""Tokens of a text above which it shares a batch only with texts of its very length. Where
nothing is padded, attention goes without a mask, and without memory for one score for each
pair of tokens: 64 MB for each such text with 16 heads, and 64 times that at 8192."""


def plan_batches(
    lengths: Sequence[int] | NDArray[np.integer],
    *,
    max_tokens: int,
    max_rows: int,
    max_padding: int,
) -> list[NDArray[np.intp]]:
    """Group texts into batches by length, longest first.

    Each text is in exactly one batch. Walking down the sorted lengths, a batch is
    closed when another row would take it over ``max_tokens`` or ``max_rows``, or
    when its padding would cost more than starting a new batch does. A text longer
    than ``max_tokens`` gets a batch of its own; one longer than `PADDED_AT_MOST` is
    not padded.

    Args:
        lengths: Tokens of each text, at least 1. Shape: ``(n,)``.
        max_tokens: Most tokens of a batch, padding included.
        max_rows: Most texts of a batch.
        max_padding: Most padding tokens of a batch.

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
        allowed = max_padding if longest <= PADDED_AT_MOST else 0
        if rows and (full or padding + longest - size > allowed):
            batches.append(order[start:position])
            start, padding = position, 0
        else:
            padding += longest - size
    if len(order):
        batches.append(order[start:])
    return batches


def balanced_batch_tokens(lengths: Sequence[int], max_tokens: int, *, runs: int) -> int:
    """Give the most tokens of a batch with which as many batches come out for each run.

    Args:
        lengths: Tokens of each text.
        max_tokens: Most tokens of a batch; texts that fit into one are not shared out.
        runs: Batches that are under way at once.
    """
    tokens = sum(lengths)
    if runs == 1 or tokens <= max_tokens:
        return max_tokens
    batches = runs * -(-tokens // (runs * max_tokens))
    # The last text rarely fits exactly; without room for all but a token of it all batches would
    # be a little smaller, and one more left over.
    return min(max_tokens, -(-tokens // batches) + tokens // len(lengths) - 1)


def pad_batch(
    rows: Sequence[NDArray[np.int64]], *, pad_token_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad rows of token ids on the right.

    Returns:
        Token ids and attention mask (1 for a token, 0 for padding), both int64.

        Shape: ``(len(rows), longest)`` each.
    """
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return ids, mask
