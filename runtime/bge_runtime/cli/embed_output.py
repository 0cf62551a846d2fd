"""The output of ``bge-embed`` to one file or stream: rows with their vectors, and their formats.

To add a file format, write a function that returns a `Write` for a file, and add its suffix to
`FORMATS`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.cli.embed_input import Row
from bge_runtime.cli.embed_model import Embedded
from bge_runtime.cli.streams.output import write_all
from bge_runtime.m3 import M3Output

Write = Callable[[Iterable[str], NDArray[np.float32]], object]
"""Writes rows. Its arguments are members of JSON objects, without the braces, and vectors."""


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


def _jsonl_writer(file: IO[bytes]) -> Write:
    def write(members: Iterable[str], vectors: NDArray[np.float32]) -> None:
        for fields, vector in zip(members, vectors, strict=True):
            # str gives the shortest text that is read as the same float32.
            numbers = ", ".join(map(str, vector))
            line = f'{{{fields}{", " if fields else ""}"embedding": [{numbers}]}}\n'
            write_all(file, line.encode())

    return write


def _npy_writer(file: IO[bytes]) -> Write:
    rows = 0

    def write(_: Iterable[str], vectors: NDArray[np.float32]) -> None:
        nonlocal rows
        rows += len(vectors)
        header = {
            "descr": np.lib.format.dtype_to_descr(vectors.dtype),
            "fortran_order": False,
            "shape": (rows, vectors.shape[1]),
        }
        # NumPy pads the header, so that the number of rows can grow in place.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(0, os.SEEK_END)
        write_all(file, vectors.tobytes())

    return write


FORMATS: Mapping[str, Callable[[IO[bytes]], Write]] = {
    ".npy": _npy_writer,
    ".jsonl": _jsonl_writer,
    ".ndjson": _jsonl_writer,
}
"""Format of a file by its suffix. Streams with another name get JSONL."""
