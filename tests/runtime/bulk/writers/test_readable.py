"""What other tools read in the output: the same rows, and vectors that they can search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from bge_runtime.bulk.writers import open_format
from tests.helpers.arrow import DIM, embedded_table, write_shard

ROWS = 60

dtypes = pytest.mark.parametrize("dtype", ["float32", "float16"])


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Write three shards in a format, once, the last one without rows."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, dtype: str) -> Path:
        if (name, dtype) not in made:
            folder = made[name, dtype] = tmp_path_factory.mktemp(f"{name}-{dtype}")
            rows = embedded_rows(dtype)
            parts = [rows.slice(0, 40), rows.slice(40), rows.slice(ROWS)]
            for number, part in enumerate(parts):
                write_shard(name, folder, part, stem=f"part-{number}")
            shards = {f"part-{number}.parquet": "" for number in range(3)}
            open_format(name).finish(str(folder), shards)
        return made[name, dtype]

    return make


def embedded_rows(dtype: str) -> pa.Table:
    return embedded_table(ROWS, dtype=dtype, colbert_dtype=dtype)


def expected(dtype: str) -> list[dict[str, Any]]:
    return embedded_rows(dtype).to_pylist()


def dense(dtype: str) -> np.ndarray:
    return np.array(embedded_rows(dtype)["dense"].to_pylist(), dtype)


def query(dtype: str) -> list[float]:
    """Return the vector of the row 42, which is in the second shard."""
    return dense(dtype)[42].tolist()


@dtypes
def test_pyarrow(outputs: Callable[[str, str], Path], dtype: str):
    dataset = pyarrow.dataset.dataset(outputs("parquet", dtype), format="parquet")
    rows = dataset.to_table(filter=pyarrow.dataset.field("id") == "document/42")
    assert rows.to_pylist() == [expected(dtype)[42]]
    assert dataset.to_table().equals(embedded_rows(dtype))
    assert dataset.schema.metadata[b"bge_runtime"] == b'{"model": "bge-m3"}'


@dtypes
def test_duckdb_finds_the_nearest_vector(outputs: Callable[[str, str], Path], dtype: str):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.execute(
        f"select id, title, array_cosine_similarity(dense::float[{DIM}], $1::float[{DIM}]) score "
        f"from '{outputs('parquet', dtype)}/*.parquet' order by score desc limit 3",
        [query(dtype)],
    ).fetchall()
    assert found[0][:2] == ("document/42", "Title 42 標題")
    assert found[0][2] == pytest.approx(1, abs=1e-3)
    scores = np.sort(dense(dtype).astype(float) @ query(dtype))[::-1]
    assert [score for _, _, score in found] == pytest.approx(scores[:3], abs=2e-3)


def test_duckdb_scores_lexical_weights(outputs: Callable[[str, str], Path]):
    duckdb = pytest.importorskip("duckdb")
    weights = {7: 0.5, 14: 2.0, 99: 1.0}
    found = duckdb.execute(
        "with weights as (select unnest($1::int[]) as token, unnest($2::float[]) as weight), "
        "entries as (select id, unnest(sparse.indices) as token, unnest(sparse.values) as value "
        f"from '{outputs('parquet', 'float32')}/*.parquet') "
        "select id, sum(value * weight) as score from entries join weights using (token) "
        "group by id order by score desc, id",
        [list(weights), list(weights.values())],
    ).fetchall()
    scores = {}
    for row in expected("float32"):
        entries = zip(row["sparse"]["indices"], row["sparse"]["values"], strict=True)
        if score := sum(value * weights.get(token, 0) for token, value in entries):
            scores[row["id"]] = score
    assert dict(found) == pytest.approx(scores)
    assert found[0][0] == max(scores, key=lambda row: scores[row])


@dtypes
def test_duckdb_scores_colbert_vectors(outputs: Callable[[str, str], Path], dtype: str):
    duckdb = pytest.importorskip("duckdb")
    rows = expected(dtype)
    asked = rows[42]["colbert"]
    found = duckdb.execute(
        "with asked as ("
        "select unnest(range(len($1))) as position, unnest($1::float[][]) as vector), "
        "tokens as (select id, unnest(colbert) as token "
        f"from '{outputs('parquet', dtype)}/*.parquet'), "
        f"best as (select id, position, max(array_inner_product(token::float[{DIM}], "
        f"vector::float[{DIM}])) as score from tokens, asked group by id, position) "
        "select id, sum(score) as score from best group by id order by score desc, id limit 1",
        [asked],
    ).fetchall()
    assert found == [("document/42", pytest.approx(len(asked), abs=1e-2))]


@dtypes
def test_datasets(
    outputs: Callable[[str, str], Path],
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    files = str(outputs("parquet", dtype) / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))["train"]
    vector = datasets.List(datasets.Value(dtype), length=DIM)
    assert rows.features["dense"] == vector
    assert rows.features["colbert"] == datasets.List(vector)
    assert rows.to_list() == expected(dtype)
    arrays = rows.with_format("numpy", columns=["dense"])[:]["dense"]
    assert np.array_equal(np.asarray(arrays, dtype), dense(dtype))


@dtypes
def test_datasets_as_a_stream(outputs: Callable[[str, str], Path], dtype: str):
    datasets = pytest.importorskip("datasets")
    files = str(outputs("parquet", dtype) / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert list(rows) == expected(dtype)


@dtypes
def test_pandas(outputs: Callable[[str, str], Path], dtype: str):
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(outputs("parquet", dtype))
    assert rows["id"].tolist() == [row["id"] for row in expected(dtype)]
    vectors = np.stack(rows["dense"])
    assert vectors.dtype == dtype
    assert np.array_equal(vectors, dense(dtype))
    assert rows["sparse"][42]["indices"].tolist() == expected(dtype)[42]["sparse"]["indices"]
    assert np.stack(rows["colbert"][42]).tolist() == expected(dtype)[42]["colbert"]


@dtypes
def test_polars(outputs: Callable[[str, str], Path], dtype: str):
    polars = pytest.importorskip("polars")
    rows = polars.read_parquet(outputs("parquet", dtype) / "*.parquet")
    assert rows.schema["dense"] == polars.Array(getattr(polars, dtype.title()), DIM)
    assert rows["dense"].to_numpy().dtype == dtype
    assert rows.to_dicts() == expected(dtype)
    lazy = polars.scan_parquet(outputs("parquet", dtype) / "*.parquet")
    assert lazy.filter(polars.col("chunk") == 1).select("id").collect().height == ROWS // 3


@dtypes
def test_lancedb_searches_the_dataset_of_lance(outputs: Callable[[str, str], Path], dtype: str):
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(outputs("lance", dtype)).open_table("vectors")
    assert table.to_arrow().to_pylist() == expected(dtype)
    found = table.search(query(dtype), vector_column_name="dense").distance_type("cosine").limit(1)
    assert [row["id"] for row in found.to_list()] == ["document/42"]


@dtypes
def test_lancedb_searches_colbert_vectors(outputs: Callable[[str, str], Path], dtype: str):
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(outputs("lance", dtype)).open_table("vectors")
    asked = np.array(expected(dtype)[42]["colbert"], dtype)
    found = table.search(asked, vector_column_name="colbert").distance_type("cosine").limit(1)
    assert [row["id"] for row in found.to_list()] == ["document/42"]


@dtypes
def test_lancedb_searches_parquet_that_it_imports(
    outputs: Callable[[str, str], Path], dtype: str, tmp_path: Path
):
    lancedb = pytest.importorskip("lancedb")
    shards = pyarrow.dataset.dataset(outputs("parquet", dtype), format="parquet")
    table = lancedb.connect(tmp_path).create_table(
        "vectors", shards.to_batches(batch_size=16), schema=shards.schema
    )
    found = table.search(query(dtype), vector_column_name="dense").distance_type("cosine").limit(1)
    assert [row["id"] for row in found.to_list()] == ["document/42"]


def numbers(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["dense"] for row in rows], np.float32)


def test_duckdb_reads_jsonl(outputs: Callable[[str, str], Path]):
    duckdb = pytest.importorskip("duckdb")
    files = outputs("jsonl", "float32") / "*.jsonl"
    found = duckdb.execute(
        f"select id, array_cosine_similarity(dense::float[{DIM}], $1::float[{DIM}]) as score "
        f"from '{files}' order by score desc limit 1",
        [query("float32")],
    ).fetchall()
    assert found[0][0] == "document/42"


def test_pandas_and_polars_read_jsonl(outputs: Callable[[str, str], Path]):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    folder = outputs("jsonl", "float32")
    rows = pandas.concat(
        pandas.read_json(folder / f"part-{number}.jsonl", lines=True, precise_float=True)
        for number in range(2)
    )
    assert np.array_equal(numbers(rows.to_dict("records")), dense("float32"))
    lines = polars.read_ndjson(folder / "part-0.jsonl").to_dicts()
    assert np.array_equal(numbers(lines), dense("float32")[:40])


def test_datasets_read_jsonl(outputs: Callable[[str, str], Path]):
    datasets = pytest.importorskip("datasets")
    files = [str(outputs("jsonl", "float32") / f"part-{number}.jsonl") for number in range(2)]
    rows = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    assert np.array_equal(numbers(list(rows)), dense("float32"))


@dtypes
def test_numpy(outputs_of_npy: Callable[[str], Path], dtype: str):
    paths = sorted(outputs_of_npy(dtype).glob("part-?.npy"))
    vectors = [np.load(path, mmap_mode="r") for path in paths]
    ids = [np.load(path.with_suffix(".ids.npy"), mmap_mode="r") for path in paths]
    assert np.array_equal(np.concatenate(vectors), dense(dtype))
    assert np.concatenate(ids).tolist() == [row["id"] for row in expected(dtype)]


@pytest.fixture
def outputs_of_npy(tmp_path: Path) -> Callable[[str], Path]:
    def make(dtype: str) -> Path:
        rows = embedded_rows(dtype).select(["id", "dense"])
        for number, start in enumerate((0, 40)):
            write_shard("npy", tmp_path, rows.slice(start, 40), stem=f"part-{number}")
        return tmp_path

    return make
