"""A job of BGE-M3's three outputs, searched by DuckDB and LanceDB, with the model's own scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bge_bench.datasets.corpus import paragraphs
from bge_runtime import BGEM3FlagModel
from bge_runtime.bulk import embed_dataset
from tests.helpers.bundles import SHARED

DIM = 48
TEXTS = 120
QUERIES = 3
XQUAD = SHARED / "text/xquad/en/corpus.jsonl"
MODES = ["dense", "sparse", "colbert"]

DENSE = f"""
select id, array_inner_product(dense::float[{DIM}], $1::float[{DIM}]) as score
from '{{shards}}' order by score desc, id
"""

SPARSE = """
with query as (select unnest($1::int[]) as token, unnest($2::float[]) as weight),
     entries as (
       select id, unnest(sparse.indices) as token, unnest(sparse.values) as weight from '{shards}'
     )
select id, sum(entries.weight * query.weight) as score
from entries join query using (token) group by id order by score desc, id
"""

COLBERT = f"""
with query as (select unnest(range(len($1))) as place, unnest($1)::float[{DIM}] as vector),
     tokens as (select id, unnest(colbert)::float[{DIM}] as token from '{{shards}}'),
     best as (
       select id, max(array_inner_product(token, vector)) as score
       from tokens, query group by id, place
     )
select id, avg(score) as score from best group by id order by score desc, id
"""

SQL = {"dense": DENSE, "sparse": SPARSE, "colbert": COLBERT}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    if not XQUAD.exists():
        return paragraphs(TEXTS)
    lines = XQUAD.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:TEXTS]]


@pytest.fixture(scope="module")
def model(tiny_m3_bundle: Path) -> BGEM3FlagModel:
    return BGEM3FlagModel(str(tiny_m3_bundle), precision="fp32")


@pytest.fixture(scope="module")
def output(
    texts: list[str], model: BGEM3FlagModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a job that wrote all outputs, as Parquet and as Lance."""
    folder = tmp_path_factory.mktemp("m3")
    pq.write_table(pa.table({"text": texts}), folder / "input.parquet")
    embed_dataset(
        model,
        folder / "input.parquet",
        folder / "output",
        output_format="lance",
        return_sparse=True,
        return_colbert_vecs=True,
        rows_per_shard=50,
        show_progress=False,
    )
    return folder / "output"


@pytest.fixture(scope="module")
def queries(texts: list[str]) -> list[str]:
    """Return the beginnings of some texts."""
    return [text[: len(text) // 3] for text in texts[:: len(texts) // QUERIES]][:QUERIES]


@pytest.fixture(scope="module")
def vectors(queries: list[str], model: BGEM3FlagModel) -> list[dict[str, Any]]:
    """Return the outputs of the queries, by mode."""
    found = model.encode_queries(queries, return_sparse=True, return_colbert_vecs=True)
    weights = [(list(map(int, each)), list(each.values())) for each in found["lexical_weights"]]
    rows = zip(found["dense_vecs"], weights, found["colbert_vecs"], strict=True)
    return [dict(zip(MODES, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def scores(
    texts: list[str], queries: list[str], model: BGEM3FlagModel
) -> list[Mapping[str, list[float]]]:
    """Return the model's own scores of each query and all texts, by mode."""
    return [model.compute_score([(query, text) for text in texts]) for query in queries]


@pytest.mark.parametrize("mode", MODES)
def test_duckdb_finds_the_scores_of_the_model(
    output: Path, vectors: list[dict[str, Any]], scores: list[Mapping[str, list[float]]], mode: str
):
    duckdb = pytest.importorskip("duckdb")
    sql = SQL[mode].format(shards=output / "*.parquet")
    for query, expected in zip(vectors, scores, strict=True):
        values = [np.asarray(each).tolist() for each in query[mode]]
        rows = duckdb.execute(sql, values if mode == "sparse" else [values]).fetchall()
        found = np.zeros(len(expected[mode]))
        for row, score in rows:  # without those that have no token of the query
            found[row] = score
        np.testing.assert_allclose(found, expected[mode], atol=2e-3)
        assert [row for row, _ in rows] == sorted(
            (row for row, _ in rows), key=lambda row: (-found[row], row)
        )


@pytest.mark.parametrize("mode", ["dense", "colbert"])
def test_lancedb_finds_what_the_model_finds(
    output: Path, vectors: list[dict[str, Any]], scores: list[Mapping[str, list[float]]], mode: str
):
    lancedb = pytest.importorskip("lancedb")
    table = lancedb.connect(output).open_table("vectors")
    for query, expected in zip(vectors, scores, strict=True):
        search = table.search(np.asarray(query[mode]), vector_column_name=mode)
        rows = search.distance_type("cosine").limit(5).to_list()
        best = np.sort(expected[mode])[::-1][:5]
        found = [expected[mode][row["id"]] for row in rows]
        np.testing.assert_allclose(found, best, atol=2e-3)


def test_the_dataset_and_the_shards_have_the_same_rows(output: Path):
    lance = pytest.importorskip("lance")
    dataset = lance.dataset(output / "vectors.lance").to_table()
    shards = pa.concat_tables(map(pq.read_table, sorted(output.glob("*.parquet"))))
    assert dataset.column_names == shards.column_names == ["id", *MODES]
    assert (
        dataset.select(["id", "sparse"]).to_pylist() == shards.select(["id", "sparse"]).to_pylist()
    )
    for mode in ("dense", "colbert"):
        # As buffers, since those of Lance are of lists that may hold nulls.
        found, expected = (table[mode].combine_chunks() for table in (dataset, shards))
        while not pa.types.is_floating(found.type):
            found, expected = found.flatten(), expected.flatten()
        assert found.equals(expected)
