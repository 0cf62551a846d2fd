"""Writers of shards, one module a format."""

from __future__ import annotations

from bge_runtime.bulk.writers.base import Format, ShardWriter
from bge_runtime.bulk.writers.parquet import ParquetFormat

__all__ = ["Format", "ShardWriter", "open_format"]

_FORMATS = {"parquet": ParquetFormat}


def open_format(name: str) -> Format:
    """Return an output format by its name, such as ``parquet``.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in _FORMATS:
        raise ValueError(f"there is no output format {name!r}; choose one of {', '.join(_FORMATS)}")
    return _FORMATS[name]()
