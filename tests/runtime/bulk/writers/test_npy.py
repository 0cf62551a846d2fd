"""NumPy shards: what numpy.load finds in them, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bge_runtime.bulk.vectors import dense_array
from bge_runtime.bulk.writers import open_format
from tests.helpers.arrow import embedded_table, unit_vectors, write_shard

STRINGS = ["a", "", "an id that is longer", "標題", "😀"] * 5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("ids", "id_type"),
    [
        (pa.array(range(25), pa.int64()), "<i8"),
        (pa.array(range(25), pa.uint16()), "<u2"),
        (pa.array(STRINGS), "<U20"),
        (pa.array(STRINGS, pa.large_string()), "<U20"),
        (pa.array(STRINGS, pa.string_view()), "<U20"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_both_files_can_be_memory_mapped(tmp_path: Path, dtype: str, ids: pa.Array, id_type: str):
    vectors = unit_vectors(25, dtype=dtype)
    rows = pa.table({"id": ids, "dense": dense_array(vectors, dtype)})
    paths = write_shard("npy", tmp_path, rows, sizes=[3, 0, 10])
    assert [path.name for path in paths] == ["part.npy", "part.ids.npy"]
    found, found_ids = (np.load(path, mmap_mode="r") for path in paths)
    assert isinstance(found, np.memmap)
    assert isinstance(found_ids, np.memmap)
    assert found.dtype == dtype
    assert np.array_equal(found, vectors)
    assert found_ids.dtype == id_type
    assert found_ids.tolist() == ids.to_pylist()


@pytest.mark.parametrize("id_type", [pa.int64(), pa.string()])
def test_a_shard_without_rows_is_read_back(tmp_path: Path, id_type: pa.DataType):
    rows = embedded_table(0).select(["id", "dense"])
    paths = write_shard("npy", tmp_path, rows.set_column(0, "id", pa.array([], id_type)))
    assert [np.load(path).shape for path in paths] == [(0, 8), (0,)]


def test_bytes_do_not_depend_on_the_calls(tmp_path: Path):
    rows = embedded_table(50).select(["id", "dense"])
    whole = write_shard("npy", tmp_path, rows, stem="whole")
    parts = write_shard("npy", tmp_path, rows, stem="parts", sizes=[1, 0, 30, 2])
    assert [path.read_bytes() for path in parts] == [path.read_bytes() for path in whole]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["id", "dense", "title"], "with the columns title; use 'parquet' or 'jsonl'"),
        (["id", "chunk", "start", "end", "dense"], "with the columns chunk, start, end"),
        (["id", "dense", "sparse", "colbert"], "with the columns sparse, colbert"),
        (["id", "sparse"], "with the columns sparse"),
        (["id"], "without dense vectors"),
    ],
)
def test_other_columns_are_refused(columns: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        open_format("npy").check(embedded_table(1).select(columns).schema)


def test_other_ids_are_refused():
    schema = embedded_table(1).select(["id", "dense"]).schema
    with pytest.raises(ValueError, match=r"integers or strings, and these are date32\[day\]"):
        open_format("npy").check(schema.set(0, pa.field("id", pa.date32())))


def test_an_id_that_would_not_be_read_back_is_refused(tmp_path: Path):
    rows = embedded_table(1).select(["id", "dense"]).set_column(0, "id", pa.array(["a\0"]))
    with pytest.raises(ValueError, match=r"ends with the character U\+0000"):
        write_shard("npy", tmp_path, rows)
