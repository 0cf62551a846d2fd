"""Parquet shards: what is in them, and that they are the same however rows arrive."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_runtime.bulk.vectors import dense_array
from bge_runtime.bulk.writers import open_format, parquet, row_sizes
from tests.helpers.arrow import embedded_table, unit_vectors, write_shard


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_and_metadata_are_read_back(tmp_path: Path, dtype: str):
    rows = embedded_table(50, dtype=dtype, colbert_dtype=dtype)
    (path,) = write_shard("parquet", tmp_path, rows, sizes=[7])
    found = pq.read_table(path)
    assert found.equals(rows)
    assert found.schema.metadata == rows.schema.metadata
    assert pq.ParquetFile(path).metadata.metadata[b"bge_runtime"] == b'{"model": "bge-m3"}'


def test_a_shard_without_rows_is_read_back(tmp_path: Path):
    rows = embedded_table(0)
    (path,) = write_shard("parquet", tmp_path, rows)
    assert pq.read_table(path).equals(rows)


def test_vectors_are_plain_and_all_else_is_compressed(tmp_path: Path):
    (path,) = write_shard("parquet", tmp_path, embedded_table(50))
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    codecs = {column.path_in_schema: column.compression for column in columns}
    assert codecs == {
        "id": "ZSTD",
        "chunk": "ZSTD",
        "start": "ZSTD",
        "end": "ZSTD",
        "title": "ZSTD",
        "tags.list.element": "ZSTD",
        "dense.list.element": "UNCOMPRESSED",
        "sparse.indices.list.element": "ZSTD",
        "sparse.values.list.element": "ZSTD",
        "colbert.list.element.list.element": "UNCOMPRESSED",
    }
    for column in columns:
        assert column.is_stats_set is (column.compression == "ZSTD")
        assert column.has_dictionary_page is (column.physical_type == "BYTE_ARRAY")


def groups(path: Path) -> list[int]:
    found = pq.ParquetFile(path).metadata
    return [found.row_group(index).num_rows for index in range(found.num_row_groups)]


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 30), max_size=8),
    limit=st.integers(150, 5000),  # rows have 90 to 200 bytes
    offset=st.integers(0, 3),
)
def test_bytes_do_not_depend_on_the_calls(sizes: Sequence[int], limit: int, offset: int):
    rows = embedded_table(60).slice(offset)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_GROUP_BYTES", limit)
        (whole,) = write_shard("parquet", Path(folder), rows, stem="whole")
        (parts,) = write_shard("parquet", Path(folder), rows, stem="parts", sizes=sizes)
        assert parts.read_bytes() == whole.read_bytes()
        assert pq.read_table(whole).equals(rows)
        ends = np.cumsum(groups(whole))
        bytes_of = row_sizes(rows)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            assert end == start + 1 or bytes_of[start:end].sum() <= limit
            assert end == len(bytes_of) or bytes_of[start : end + 1].sum() > limit


def test_a_row_group_holds_at_most_32_mb(tmp_path: Path):
    vectors = dense_array(unit_vectors(50_000, 384), "float32")
    rows = pa.table({"id": np.arange(50_000), "dense": vectors})
    (path,) = write_shard("parquet", tmp_path, rows, sizes=[2048] * 10)
    assert groups(path) == [(32 << 20) // (384 * 4 + 8)] * 2 + [50_000 - 2 * 21732]


def test_a_type_that_parquet_does_not_have_is_refused():
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("gap", pa.month_day_nano_interval())])
    with pytest.raises(ValueError, match=r"column 'gap' has the type month_day_nano_interval"):
        open_format("parquet").check(schema)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="output_format='csv' is none of 'parquet', 'npy'"):
        open_format("csv")
