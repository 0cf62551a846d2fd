"""Reads Arrow: IPC files, which are also called Feather, and IPC streams."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from bge_runtime.bulk.files import InputError, InputFile, open_file, reading
from bge_runtime.bulk.readers.arrays import common_schema, map_files, require_column, to_batches
from bge_runtime.bulk.readers.base import FileIndex, OnBytes, RowBatch, changed
from bge_runtime.bulk.readers.scan import ScanningReader

_FILE_MAGIC = b"ARROW1"

_FEATHER_1_MAGIC = b"FEA1"


class ArrowReader(ScanningReader):
    """Reads record batches, each as a whole.

    Files are not mapped into memory: the process would be killed if one was cut meanwhile.
    """

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns that all files have."""
        return common_schema(files, map_files(_schema, files), columns)

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many rows there are, and with which row each record batch begins."""
        rows = done = 0
        starts = []
        with _open(file, [_narrowest(_schema(file))]) as (stream, reader):
            for batch in _batches(reader, 0):
                starts.append(rows)
                rows += batch.num_rows
                if stream.tell() > done:
                    on_bytes(stream.tell() - done)
                    done = stream.tell()
        on_bytes(file.size_bytes - done)
        return FileIndex(rows=rows, offsets=tuple(starts))

    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield rows; record batches before the first one are skipped, in streams by reading."""
        found = _schema(file)
        chosen = [
            found.names.index(require_column(file, found, name).name) for name in schema.names
        ]
        start = bisect_right(index.offsets, first) - 1
        row = index.offsets[start]
        with _open(file, chosen) as (_, reader):
            for batch in _batches(reader, start):
                batch.validate(full=True)  # offsets of a damaged file would end the process
                begin = max(first - row, 0)
                yield from to_batches(batch.slice(begin), schema, row + begin)
                row += batch.num_rows
        if row != index.rows:
            raise changed(file, index, row)


@contextmanager
def _open(file: InputFile, columns: Sequence[int] | None = None) -> Iterator[tuple[Any, Any]]:
    """Open a file: its bytes, and pyarrow's reader of some columns."""
    options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    with reading(file), open_file(file) as stream:
        magic = stream.read(len(_FILE_MAGIC))
        stream.seek(0)
        if magic.startswith(_FEATHER_1_MAGIC):
            raise InputError(
                f"{file.uri} is Feather version 1, which is not read: write it with version 2"
            )
        open_ipc = pa.ipc.open_file if magic == _FILE_MAGIC else pa.ipc.open_stream
        with open_ipc(stream, options=options) as reader:
            yield stream, reader


def _batches(reader: Any, start: int) -> Iterator[pa.RecordBatch]:
    """Yield record batches from one on."""
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for number in range(start, reader.num_record_batches):
            yield reader.get_batch(number)
        return
    for number, batch in enumerate(reader):
        if number >= start:
            yield batch


def _schema(file: InputFile) -> pa.Schema:
    with _open(file) as (_, reader):
        return reader.schema


def _narrowest(schema: pa.Schema) -> int:
    """Return a column that is fast to read."""
    for number, field in enumerate(schema):
        if pa.types.is_primitive(field.type):
            return number
    return 0
