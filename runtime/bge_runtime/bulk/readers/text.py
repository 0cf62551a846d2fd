"""Reads text: each line is a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from bge_runtime.bulk.files import InputFile
from bge_runtime.bulk.readers.arrays import common_schema, too_large
from bge_runtime.bulk.readers.base import FileIndex, OnBytes, RowBatch
from bge_runtime.bulk.readers.batches import BatchBuilder
from bge_runtime.bulk.readers.line_files import index_lines, read_lines
from bge_runtime.bulk.readers.scan import ScanningReader
from bge_runtime.lines import BadLineError, LongLine, decode_line

_SCHEMA = pa.schema([("text", pa.string())])


class TextReader(ScanningReader):
    """Reads lines into one column, ``text``. A blank line is an empty text."""

    def schema(self, files: Sequence[InputFile], columns: Sequence[str] | None = None) -> pa.Schema:
        """Return the only column."""
        return common_schema(files[:1], [_SCHEMA], columns)

    def index(self, file: InputFile, on_bytes: OnBytes) -> FileIndex:
        """Return how many lines there are."""
        return index_lines(file, on_bytes)

    def scan(
        self, file: InputFile, index: FileIndex, schema: pa.Schema, *, first: int
    ) -> Iterator[RowBatch]:
        """Yield lines; one that is not UTF-8 is a bad row."""
        batch = BatchBuilder(schema)
        for row, line in read_lines(file, index, first=first):
            if isinstance(line, LongLine):
                batch.add_bad(row, too_large(line.size_bytes))
            else:
                try:
                    text = decode_line(line.removesuffix(b"\r"))
                except BadLineError as error:
                    batch.add_bad(row, str(error))
                else:
                    batch.add(row, [text] * len(schema), len(line))
            if batch.full:
                yield batch.take()
        if batch:
            yield batch.take()
