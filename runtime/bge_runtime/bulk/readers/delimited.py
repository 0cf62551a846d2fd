"""Reads CSV and TSV: the first line names the columns, and all values are strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from bge_runtime.bulk.files import InputError, InputFile, compression_of
from bge_runtime.bulk.readers.arrays import common_schema, map_files, require_column
from bge_runtime.bulk.readers.base import FileIndex, OnBytes, RowBatch, changed
from bge_runtime.bulk.readers.batches import BatchBuilder
from bge_runtime.bulk.readers.line_files import STRIDE, open_blocks
from bge_runtime.bulk.readers.records import RecordStream
from bge_runtime.bulk.readers.scan import ScanningReader
from bge_runtime.lines import BadLineError


class DelimitedReader(ScanningReader):
    """Reads values between delimiters.

    In CSV, a value in double quotes may hold delimiters and newlines. A row whose quotes are wrong
    is bad, and ends with its first line, so that a quote that is never closed costs one row. In
    TSV, each line is a row, and only double quotes around a whole value are no part of it.
    """

    def __init__(self, delimiter: str) -> None:
        """Read files with a delimiter of one character."""
        super().__init__()
        self._delimiter = delimiter

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return columns that all files have."""

        def read(file: InputFile) -> pa.Schema:
            with open_blocks(file) as blocks:
                header = _read_header(file, RecordStream(blocks, self._delimiter))
            return pa.schema([(name, pa.string()) for name in header])

        return common_schema(files, map_files(read, files), columns)

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many records follow the header."""
        rows = 0
        offsets = []
        with open_blocks(file, on_bytes=on_bytes) as blocks:
            records = RecordStream(blocks, self._delimiter)
            _read_header(file, records)
            offsets.append(records.position)
            while records.skip():
                rows += 1
                if rows % STRIDE == 0:
                    offsets.append(records.position)
        if compression_of(file):
            return FileIndex(rows=rows)
        return FileIndex(rows=rows, stride=STRIDE, offsets=tuple(offsets))

    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield records; one with another number of values than the header is a bad row."""
        with open_blocks(file) as blocks:
            records = RecordStream(blocks, self._delimiter)
            header = _read_header(file, records)
            for name in schema.names:
                require_column(file, pa.schema([(each, pa.string()) for each in header]), name)
            if not index.offsets:
                yield from _read_rows(file, index, records, header, schema, 0, first)
                return
        entry = first // index.stride
        with open_blocks(file, offset=index.offsets[entry]) as blocks:
            records = RecordStream(blocks, self._delimiter, position=index.offsets[entry])
            row = entry * index.stride
            yield from _read_rows(file, index, records, header, schema, row, first)


def _read_header(file: InputFile, records: RecordStream) -> list[str]:
    try:
        for values, _ in records:
            if values:
                return values
    except BadLineError as error:
        raise InputError(f"the first line of {file.uri} {error}") from error
    raise InputError(f"{file.uri} is empty: its first line must name its columns")


def _read_rows(
    file: InputFile,
    index: FileIndex,
    records: RecordStream,
    header: Sequence[str],
    schema: pa.Schema,
    row: int,
    first: int,
) -> Iterator[RowBatch]:
    """Yield rows from one on, of records that begin with some row."""
    batch = BatchBuilder(schema)
    chosen = [header.index(name) for name in schema.names]
    for number in range(row, index.rows):
        if number < first:
            if not records.skip():
                raise changed(file, index, number)
            continue
        try:
            values, size_bytes = next(records)
        except StopIteration:
            raise changed(file, index, number) from None
        except BadLineError as error:
            batch.add_bad(number, str(error))
        else:
            if len(values) == len(header):
                batch.add(number, [values[column] for column in chosen], size_bytes)
            elif values:
                columns = "column" if len(values) == 1 else "columns"
                batch.add_bad(
                    number, f"has {len(values)} {columns}, but the header has {len(header)}"
                )
        if batch.full:
            yield batch.take()
    if batch:
        yield batch.take()
