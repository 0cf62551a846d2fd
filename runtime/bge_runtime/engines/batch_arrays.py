"""Arrays of a batch: the inputs that a graph needs, and its outputs as rows of texts."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import (
    COLBERT_VECS,
    CUMULATIVE_LENGTHS,
    HEAD_OUTPUTS,
    SECOND_TEXT,
    TOKEN_OFFSET,
    UNIFORM_BATCH,
    UNIFORM_LENGTH,
)


class PastInputs:
    """The inputs of a causal graph that take keys and values of a shared prefix.

    Attributes:
        names: Their names, in the graph's order. Empty for an encoder.
        token_bytes: Size of one token in all of them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Store the inputs.

        Args:
            shapes: Number of heads and their width, by name of the input.
        """
        self.names = tuple(shapes)
        self.token_bytes = sum(heads * width * 4 for heads, width in shapes.values())
        self._empty = [
            np.empty((1, heads, 0, width), dtype=np.float32) for heads, width in shapes.values()
        ]

    def feeds(self, past: Sequence[NDArray[np.float32]] | None) -> dict[str, NDArray[np.float32]]:
        """Return the arrays of a prefix by input; without a prefix they have no tokens.

        Raises:
            ValueError: If there are more arrays than inputs, or fewer.
        """
        return dict(zip(self.names, self._empty if past is None else past, strict=True))


def pad_batch(
    rows: Sequence[NDArray[np.int64]], *, pad_token_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids padded on the right, and their attention mask.

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


def graph_inputs(
    names: Container[str], input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a batch by input of a graph.

    Args:
        names: Names of the graph's inputs.
        input_ids: Token ids; those of a pair's second text may have the token type 1, see
            `bge_runtime.bundle.SECOND_TEXT`. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
    """
    takes_types = "token_type_ids" in names
    if takes_types:
        token_types, input_ids = np.divmod(input_ids, SECOND_TEXT)
    if CUMULATIVE_LENGTHS in names:
        packed = packed_inputs(input_ids, attention_mask)
        if UNIFORM_BATCH in names:
            packed[UNIFORM_BATCH] = packed.pop(TOKEN_OFFSET)
        if UNIFORM_LENGTH in names:
            packed[UNIFORM_LENGTH] = np.array(attention_mask.all())
        if takes_types:
            packed["token_type_ids"] = token_types.ravel()[attention_mask.ravel() != 0]
        return packed
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if takes_types:
        inputs["token_type_ids"] = token_types
    return inputs


def packed_inputs(
    input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Return the inputs of a packed graph, which takes all tokens of a batch without padding.

    Args:
        input_ids: Token ids. Shape: ``(batch, sequence)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.
    """
    rows, columns = input_ids.shape
    kept = attention_mask.ravel() != 0
    places = np.arange(rows * columns, dtype=np.int32)
    lengths = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(attention_mask.sum(axis=1), out=lengths[1:])
    return {
        "input_ids": input_ids.ravel()[kept],
        "position_ids": (places[kept] % columns).astype(np.int64),
        CUMULATIVE_LENGTHS: lengths,
        TOKEN_OFFSET: np.concatenate([places[kept], places[~kept]]).reshape(rows, columns),
    }


def split_by_text(
    output: str, values: NDArray[np.float32], attention_mask: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return an output of a packed graph with one row for each text, as other graphs have.

    Args:
        output: Name of the output.
        values: One row for each text, or for each token. Shape: ``(texts, …)`` or
            ``(tokens, …)``.
        attention_mask: 1 for a token, 0 for padding. Shape: ``(batch, sequence)``.

    Returns:
        A number for each token, with zeros at padding. Of ``colbert_vecs`` an array of arrays,
        which are views of ``values`` without padding: a copy would be 64 MB a batch of M3.
    """
    if output == COLBERT_VECS:
        ends = np.cumsum(attention_mask.sum(axis=1))
        rows = np.empty(len(ends), dtype=object)
        for row, part in enumerate(np.split(values, ends[:-1])):
            rows[row] = part[1:]
        return rows
    if output not in HEAD_OUTPUTS:
        return values
    padded = np.zeros(attention_mask.shape, dtype=values.dtype)
    padded[attention_mask != 0] = values
    return padded
