"""Files of lines: where their lines are, and reading them from any of them, compressed or not."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from bge_runtime.bulk.files import (
    InputError,
    InputFile,
    block_bytes,
    compression_of,
    open_file,
    reading,
)
from bge_runtime.bulk.readers.base import MAX_ROW_BYTES, FileIndex, OnBytes, changed
from bge_runtime.lines import LongLine, skip_mark, split_lines

STRIDE = 4096
"""Lines between two entries of an index."""

_NEWLINE = ord("\n")


@contextmanager
def open_blocks(
    file: InputFile, *, offset: int = 0, on_bytes: OnBytes = lambda _: None
) -> Iterator[Iterator[bytes]]:
    """Open a file as blocks of bytes, which are decompressed.

    Args:
        file: The file.
        offset: Where to start; above 0 only in files that are not compressed.
        on_bytes: Receives how many bytes of the file were read.
    """
    compression = compression_of(file)
    with reading(file), open_file(file) as raw:
        raw.seek(offset)
        stream = raw
        if compression:  # pyarrow asks for 64 KB at a time
            buffered = pa.BufferedInputStream(raw, block_bytes(file))
            stream = pa.CompressedInputStream(buffered, compression)
        yield _blocks(file, raw, stream, on_bytes)


def _blocks(file: InputFile, raw: Any, stream: Any, on_bytes: OnBytes) -> Iterator[bytes]:
    size = block_bytes(file)
    position = raw.tell()
    while True:
        try:
            block = stream.read(size)
        except OSError as error:
            if stream is raw:
                raise
            raise InputError(
                f"cannot decompress {file.uri}: it is damaged or incomplete. Copy it again "
                f"({str(error).strip()})"
            ) from error
        on_bytes(raw.tell() - position)
        position = raw.tell()
        if not block:
            return
        yield block


def index_lines(file: InputFile, on_bytes: OnBytes) -> FileIndex:
    """Return how many lines a file has, and where every `STRIDE`-th begins."""
    rows = position = tail = 0
    offsets = [0]
    only_mark = True
    with open_blocks(file, on_bytes=on_bytes) as blocks:
        for block in blocks:
            count = block.count(b"\n")
            if (rows + count) // STRIDE > rows // STRIDE:
                newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
                chosen = newlines[STRIDE - 1 - rows % STRIDE :: STRIDE]
                offsets += (position + 1 + chosen).tolist()
            rows += count
            tail = len(block) - 1 - block.rfind(b"\n") if count else tail + len(block)
            only_mark = position == 0 and block == codecs.BOM_UTF8
            position += len(block)
    if tail and not only_mark:
        rows += 1
    if compression_of(file):
        return FileIndex(rows=rows)
    return FileIndex(rows=rows, stride=STRIDE, offsets=tuple(offsets))


def read_lines(
    file: InputFile, index: FileIndex, *, first: int
) -> Iterator[tuple[int, bytes | LongLine]]:
    """Yield the numbers of lines, from one on, and the lines.

    Raises:
        InputError: If the file cannot be read, or has fewer lines than its index says.
    """
    row = offset = 0
    if index.offsets:
        entry = first // index.stride
        row, offset = entry * index.stride, index.offsets[entry]
    with open_blocks(file, offset=offset) as blocks:
        for line in split_lines(blocks if offset else skip_mark(blocks), MAX_ROW_BYTES):
            if row >= first and line is not None:  # there are no pauses in files
                yield row, line
            row += 1
            if row == index.rows:
                return
    raise changed(file, index, row)
