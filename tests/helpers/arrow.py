"""Tables of vectors, as bulk embedding writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bge_runtime.bulk.vectors import colbert_array, dense_array, sparse_array
from bge_runtime.bulk.writers import open_format
from bge_runtime.m3 import LexicalWeights

DIM = 8


def unit_vectors(rows: int, dim: int = DIM, dtype: str = "float32") -> NDArray[Any]:
    """Return normalized vectors, the same ones each time."""
    vectors = np.random.default_rng(rows).standard_normal((rows, dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.dtype(dtype))


def lexical_weights(rows: int) -> LexicalWeights:
    """Return the weights of 0 to 4 tokens a row."""
    lengths = np.arange(rows) % 5
    ids = np.array([7 * place for length in lengths for place in range(length)], np.int32)
    weights = np.random.default_rng(0).random(len(ids), dtype=np.float32)
    return LexicalWeights(np.concatenate([[0], np.cumsum(lengths)]), ids, weights)


def token_vectors(rows: int) -> list[NDArray[Any]]:
    """Return the vectors of 1 to 4 tokens a row."""
    ends = np.cumsum(np.arange(rows) % 4 + 1)
    return np.split(unit_vectors(int(ends[-1])), ends[:-1]) if rows else []


def embedded_table(
    rows: int, *, dtype: str = "float32", colbert_dtype: str = "float16"
) -> pa.Table:
    """Return rows with all columns that an output can have: string ids, chunks, kept columns."""
    numbers = np.arange(rows)
    columns = {
        "id": pa.array([f"document/{row}" for row in numbers]),
        "chunk": pa.array(numbers % 3, pa.int32()),
        "start": pa.array(numbers % 3 * 100, pa.int32()),
        "end": pa.array(numbers % 3 * 100 + 100, pa.int32()),
        "title": pa.array(
            [None if row % 3 else f"Title {row} 標題" for row in numbers], pa.string()
        ),
        "tags": pa.array([["a", None][: row % 3] for row in numbers], pa.list_(pa.string())),
        "dense": dense_array(unit_vectors(rows), dtype),
        "sparse": sparse_array(lexical_weights(rows)),
        "colbert": colbert_array(token_vectors(rows), colbert_dtype, DIM),
    }
    return pa.table(columns).replace_schema_metadata({"bge_runtime": '{"model": "bge-m3"}'})


def write_shard(
    name: str, folder: Path, rows: pa.Table, *, sizes: Sequence[int] = (), stem: str = "part"
) -> list[Path]:
    """Write one shard and return its files.

    Args:
        name: Name of the format.
        folder: Where to.
        rows: The rows.
        sizes: Rows of the first calls of `write`; one call writes the rest.
        stem: What the names of the files begin with.
    """
    form = open_format(name)
    form.check(rows.schema)
    paths = [folder / f"{stem}{suffix}" for suffix in form.suffixes]
    writer = form.open(paths, rows.schema)
    start = 0
    try:
        for size in (*sizes, rows.num_rows):
            writer.write(rows.slice(start, size))
            start += size
        writer.close()
    finally:
        writer.abort()
    return paths
