"""What a writer of one output format does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa


class ShardWriter(Protocol):
    """Writes one shard to local files, as a stream.

    The bytes depend on the sequence of rows, and not on how it is divided among calls of `write`.
    """

    def write(self, rows: pa.Table) -> None:
        """Write rows; the columns are those of the schema that the writer was opened with.

        Raises:
            OSError: If a file cannot be written. Call `abort` then.
        """
        ...

    def close(self) -> None:
        """Complete the files and close them. They are not synced to the disk.

        Raises:
            OSError: If a file cannot be written. Call `abort` then.
        """
        ...

    def abort(self) -> None:
        """Close the files as they are, and free memory. Never fails; may follow `close`."""
        ...


class Format(Protocol):
    """An output format.

    Attributes:
        suffixes: Suffixes of the files of a shard, such as ``(".parquet",)``. The first one is the
            main file.
        result: What `finish` makes in the folder, None if the shards are the result.
        package: What it needs to be installed, and the module to import; None if nothing.
    """

    suffixes: Sequence[str]
    result: str | None
    package: tuple[str, str] | None

    def check(self, schema: pa.Schema) -> None:
        """Check whether the format can hold the columns.

        Raises:
            ValueError: If it cannot.
        """
        ...

    def open(self, paths: Sequence[Path], schema: pa.Schema) -> ShardWriter:
        """Open the files of a shard for writing, one path for each suffix.

        Args:
            paths: Files that do not exist yet.
            schema: The columns; its metadata describes the model and is written with them.

        Raises:
            OSError: If a file cannot be created.
        """
        ...

    def finish(self, folder: str, shards: Mapping[str, str]) -> None:
        """Make one result of all shards, if the format has one.

        Call it once all shards are complete, by every run: a complete result is kept, and one that
        was interrupted is made again.

        Args:
            folder: Folder of the output, or its URI.
            shards: Names of the main files in it, in order, and their SHA-256.

        Raises:
            OSError: If the result cannot be written, or another one is in its place.
        """
        ...
