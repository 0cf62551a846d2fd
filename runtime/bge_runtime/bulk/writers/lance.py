"""A Lance dataset, made of Parquet shards."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bge_runtime.bulk.writers.parquet import ParquetFormat

_SHARDS_KEY = b"bge_runtime_shards"
"""Key of the schema's metadata that says which shards a dataset was made of."""


class LanceFormat(ParquetFormat):
    """Parquet shards, and one Lance dataset of them all once they are complete."""

    result: str | None = "vectors.lance"
    package: tuple[str, str] | None = ("pylance", "lance")

    def finish(self, folder: str, shards: Mapping[str, str]) -> None:
        """Write the dataset, which appears at once, unless it is there.

        Raises:
            OSError: If it cannot be written, or one of other shards is there.
        """
        import lance

        digest = hashlib.sha256(json.dumps(list(shards.items())).encode()).hexdigest()
        path = Path(folder) / str(self.result)
        found = _open(path)
        if found is not None:
            if found.schema.metadata.get(_SHARDS_KEY) != digest.encode():
                raise OSError(f"{path} was not made of the shards beside it; move it away")
            return
        shutil.rmtree(path, ignore_errors=True)  # what an interrupted run has left
        names = list(shards)
        schema = pq.read_schema(Path(folder, names[0]))
        schema = schema.with_metadata({**(schema.metadata or {}), _SHARDS_KEY: digest})
        batches = _read([Path(folder, name) for name in names], schema)
        try:
            lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(path))
        except OSError as error:
            raise OSError(f"cannot write {path}, the shards are complete: {error}") from error


def _open(path: Path) -> Any:
    """Return a dataset, None if there is no complete one."""
    import lance

    try:
        return lance.dataset(str(path))
    except (ValueError, FileNotFoundError):
        return None


def _read(paths: list[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of shards, a row group at a time."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for batch in file.read_row_group(group).to_batches():
                    yield batch.cast(schema)
