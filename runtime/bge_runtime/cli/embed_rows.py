"""Rows of ``bge-embed``: embed the texts of input rows, and format the results for the output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.cli.embed_input import BadRows, Row
from bge_runtime.cli.embed_model import Embedded, Encode
from bge_runtime.errors import NotFiniteError
from bge_runtime.m3 import M3Output


def embed_rows(
    rows: Sequence[Row], encode: Encode, bad_rows: BadRows
) -> Iterator[tuple[Sequence[Row], Embedded]]:
    """Embed rows, and report those that the model rejects.

    The model's error names no row, so the rows are halved until the bad one is found.

    Args:
        rows: Rows to embed.
        encode: Function that embeds texts.
        bad_rows: Receives the rows that are rejected.

    Returns:
        Rows with their embeddings, in the order of the input.
    """
    try:
        embedded = encode([row.text for row in rows])
    except (ValueError, NotFiniteError) as error:
        if len(rows) == 1:
            bad_rows.add(rows[0].line, f"cannot be embedded: {error}")
            return
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            yield from embed_rows(half, encode, bad_rows)
        return
    yield rows, embedded


def format_rows(
    rows: Sequence[Row], embedded: Embedded
) -> tuple[Iterator[str], NDArray[np.float32]]:
    """Return the output of rows: the members of their JSON objects, and dense vectors."""
    if not isinstance(embedded, dict):
        return (row.members for row in rows), embedded
    dense = embedded["dense_vecs"]
    assert dense is not None
    return _members_with_heads(rows, embedded), dense


def _members_with_heads(rows: Sequence[Row], embedded: M3Output) -> Iterator[str]:
    for index, row in enumerate(rows):
        heads: dict[str, Any] = {}
        if (weights := embedded["lexical_weights"]) is not None:
            heads["lexical_weights"] = {key: float(x) for key, x in weights[index].items()}
        if (vectors := embedded["colbert_vecs"]) is not None:
            # Python lists take eight times the memory of the array, so one text at a time.
            heads["colbert_vecs"] = vectors[index].tolist()
        members = json.dumps(heads, allow_nan=False)[1:-1]
        yield ", ".join(filter(None, (row.members, members)))
