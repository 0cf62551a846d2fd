"""NumPy shards: dense vectors that can be memory-mapped, and their ids in a second file."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_PART = 8192
"""Ids that are converted at once."""


class NpyFormat:
    """Two arrays a shard: dense vectors, and ids.

    ``numpy.load(path, mmap_mode="r")`` maps both: ids are integers, or strings of the width of the
    shard's longest one.
    """

    suffixes: Sequence[str] = (".npy", ".ids.npy")
    result: str | None = None
    package: tuple[str, str] | None = None

    def check(self, schema: pa.Schema) -> None:
        """Check whether there are ids and dense vectors, and nothing else.

        Raises:
            ValueError: If not.
        """
        others = [name for name in schema.names if name not in {"id", "dense"}]
        if others or "dense" not in schema.names:
            found = f"with the columns {', '.join(others)}" if others else "without dense vectors"
            raise ValueError(
                f"output_format='npy' holds ids and dense vectors only, and this output is one "
                f"{found}; use 'parquet' or 'jsonl'"
            )
        if not (_is_string(ids := schema.field("id").type) or pa.types.is_integer(ids)):
            raise ValueError(
                f"output_format='npy' holds ids that are integers or strings, and these are {ids}; "
                "use 'parquet' or 'jsonl'"
            )

    def open(self, paths: Sequence[Path], schema: pa.Schema) -> NpyShard:
        """Open a shard for writing."""
        return NpyShard(paths, schema)

    def finish(self, folder: str, shards: Mapping[str, str]) -> None:
        """Do nothing: the shards are the result."""


class NpyShard:
    """Writes vectors as they come, and ids at the end."""

    def __init__(self, paths: Sequence[Path], schema: pa.Schema) -> None:
        """Create the files."""
        vectors = schema.field("dense").type
        self._dtype = np.dtype(vectors.value_type.to_pandas_dtype())
        self._dim = vectors.list_size
        self._id_type = schema.field("id").type
        self._ids: list[pa.Array] = []
        self._rows = 0
        self._files: list[IO[bytes]] = []
        try:
            for path in paths:
                self._files.append(open(path, "wb"))  # noqa: SIM115
            self._write_vectors_header()
        except BaseException:
            self.abort()
            raise

    def write(self, rows: pa.Table) -> None:
        """Write vectors, and keep ids."""
        for chunk in rows["dense"].chunks:
            self._files[0].write(memoryview(chunk.flatten().to_numpy()))
        self._ids += rows["id"].chunks
        self._rows += rows.num_rows

    def close(self) -> None:
        """Write the number of rows, and ids."""
        self._files[0].seek(0)
        self._write_vectors_header()
        self._write_ids()
        for file in self._files:
            file.close()

    def abort(self) -> None:
        """Close the files as they are."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        self._ids.clear()

    def _write_vectors_header(self) -> None:
        # NumPy pads it, so that the number of rows can grow in place.
        _write_header(self._files[0], self._dtype, (self._rows, self._dim))

    def _write_ids(self) -> None:
        ids = pa.chunked_array(self._ids, self._id_type)
        if _is_string(self._id_type):
            ids = ids.cast(pa.large_string())
            if pc.any(pc.ends_with(ids, "\0")).as_py():
                raise ValueError(
                    "an id ends with the character U+0000, which NumPy drops; use "
                    "output_format='parquet'"
                )
            dtype = np.dtype(f"<U{pc.max(pc.utf8_length(ids)).as_py() or 1}")
        else:
            dtype = np.dtype(self._id_type.to_pandas_dtype())
        _write_header(self._files[1], dtype, (self._rows,))
        for start in range(0, len(ids), _PART):
            part = ids.slice(start, _PART).to_pylist()
            self._files[1].write(np.array(part, dtype).tobytes())


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)


def _is_string(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
