"""What a writer of one output format does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa


class ShardWriter(Protocol):
    """Writes one shard to local files, as a stream."""

    def write(self, rows: pa.Table) -> None:
        """Write rows; the columns are those of the schema that the writer was opened with.

        Raises:
            OSError: If a file cannot be written.
        """
        ...

    def close(self) -> None:
        """Complete the files. Called once, after the last row; not called after an error."""
        ...


class Format(Protocol):
    """An output format.

    Attributes:
        suffixes: Suffixes of the files of a shard, such as ``(".parquet",)``. The first one is the
            main file.
    """

    suffixes: Sequence[str]

    def check(self, schema: pa.Schema) -> None:
        """Check whether the format can hold the columns.

        Raises:
            ValueError: If it cannot.
            ImportError: If a package is missing.
        """
        ...

    def open(self, paths: Sequence[Path], schema: pa.Schema) -> ShardWriter:
        """Open the files of a shard for writing, one path for each suffix.

        Args:
            paths: Files that do not exist yet.
            schema: The columns; its metadata describes the model and is written with them.
        """
        ...
