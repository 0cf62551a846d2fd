"""Readers of input files, one module a format.

To add a format, implement `Reader` in a module of its own, and name it in ``_READERS`` and, with
its suffixes, in `bge_runtime.bulk.files.SUFFIXES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bge_runtime.bulk.files import InputError
from bge_runtime.bulk.readers.arrays import JSON_TEXT, is_json_text, list_names
from bge_runtime.bulk.readers.arrow import ArrowReader
from bge_runtime.bulk.readers.base import BadRow, FileIndex, OnBytes, Reader, RowBatch
from bge_runtime.bulk.readers.delimited import DelimitedReader
from bge_runtime.bulk.readers.jsonl import JsonlReader
from bge_runtime.bulk.readers.parquet import ParquetReader
from bge_runtime.bulk.readers.text import TextReader

__all__ = [
    "JSON_TEXT",
    "BadRow",
    "FileIndex",
    "OnBytes",
    "Reader",
    "RowBatch",
    "is_json_text",
    "list_names",
    "open_reader",
]

_READERS: dict[str, Callable[[], Reader]] = {
    "parquet": ParquetReader,
    "arrow": ArrowReader,
    "jsonl": JsonlReader,
    "csv": partial(DelimitedReader, ","),
    "tsv": partial(DelimitedReader, "\t"),
    "text": TextReader,
}


def open_reader(input_format: str) -> Reader:
    """Return the reader of a format: a key of `bge_runtime.bulk.files.SUFFIXES`.

    Raises:
        InputError: If there is none.
    """
    if input_format not in _READERS:
        raise InputError(f"input format {input_format!r} is none of {', '.join(_READERS)}")
    return _READERS[input_format]()
