"""Writers of shards, one module a format.

To add a format, implement `Format` in a module of its own, and name it in `FORMATS`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from bge_runtime.bulk.writers.base import Format, ShardWriter
from bge_runtime.bulk.writers.jsonl import JsonlFormat
from bge_runtime.bulk.writers.lance import LanceFormat
from bge_runtime.bulk.writers.npy import NpyFormat
from bge_runtime.bulk.writers.parquet import ParquetFormat
from bge_runtime.bulk.writers.row_sizes import row_sizes

__all__ = ["FORMATS", "Format", "ShardWriter", "open_format", "row_sizes"]

FORMATS: Mapping[str, type[Format]] = {
    "parquet": ParquetFormat,
    "npy": NpyFormat,
    "jsonl": JsonlFormat,
    "lance": LanceFormat,
}
"""The output formats by name."""


def open_format(name: str) -> Format:
    """Return an output format by its name, such as ``parquet``.

    Raises:
        ValueError: If there is none of that name.
        ImportError: If the package that it needs is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"output_format={name!r} is none of {', '.join(map(repr, FORMATS))}")
    found = FORMATS[name]()
    if found.package is not None:
        package, module = found.package
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"output_format={name!r} needs {package}: pip install {package}")
    return found
