"""Search Parquet shards in LanceDB: by dense vectors, by sparse ones, and by both.

    bge-embed MODEL BEIR/corpus.jsonl -o VECTORS --id _id --sparse --max-length 512
    python search_lancedb.py MODEL VECTORS BEIR

BEIR is a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv``. It prints nDCG@10; that
of the dense vectors is the one of ``bge-bench retrieval MODEL --task BEIR``. Needs `pip install
'bge-runtime[cpu,bulk]' lancedb`. LanceDB searches no sparse vectors. So the weights become a table
of their own, an inverted index: a row for each token of a passage, found by an index on the tokens.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from lancedb.index import BTree
from lancedb.rerankers import RRFReranker

from bge_bench.datasets import metrics
from bge_bench.datasets.data import load_retrieval
from bge_runtime import BGEM3FlagModel

BATCH = 1024
FOUND = 10
CANDIDATES = 100
"""Passages that each search hands to fusion."""


def read_passages(shards: pyarrow.dataset.Dataset) -> Iterator[pa.RecordBatch]:
    """Yield ids and dense vectors, some at a time: a shard need not fit into memory."""
    yield from shards.to_batches(batch_size=BATCH, columns=["id", "dense"])


def read_postings(shards: pyarrow.dataset.Dataset) -> Iterator[pa.RecordBatch]:
    """Yield a row for each token of each passage: its id, the passage's, and the weight."""
    for batch in shards.to_batches(batch_size=BATCH, columns=["id", "sparse"]):
        indices, values = (pc.struct_field(batch["sparse"], name) for name in ("indices", "values"))
        passages = batch["id"].take(pc.list_parent_indices(indices))
        columns = [pc.list_flatten(indices), passages, pc.list_flatten(values)]
        yield pa.record_batch(columns, names=["token", "id", "weight"])


def open_tables(folder: str, vectors: str) -> tuple[Any, Any]:
    """Return a table of the passages and one of their tokens, made from the shards."""
    database = lancedb.connect(folder)
    shards = pyarrow.dataset.dataset(vectors)
    schema = pa.schema([shards.schema.field("id"), shards.schema.field("dense")])
    passages = database.create_table("passages", schema=schema, data=read_passages(shards))
    fields = [("token", pa.int32()), ("id", schema.field("id").type), ("weight", pa.float32())]
    postings = database.create_table("postings", schema=pa.schema(fields))
    postings.add(read_postings(shards))
    postings.create_index("token", config=BTree())
    return passages, postings


def search_dense(passages: Any, vector: np.ndarray) -> pa.Table:
    """Return the nearest passages; every one is compared, since the table has no index."""
    found = passages.search(vector).distance_type("dot").limit(CANDIDATES)
    return found.select(["id", "_distance"]).to_arrow()


def search_sparse(postings: Any, weights: dict[str, float]) -> pa.Table:
    """Return the passages with the largest sums of products of weights."""
    tokens = np.array(sorted(map(int, weights)))
    asked = np.array([weights[str(token)] for token in tokens], dtype=np.float32)
    # limit(None) returns every row that matches, not ten.
    condition = f"token IN ({', '.join(map(str, tokens))})"
    rows = postings.search().where(condition).limit(None).to_arrow()
    product = asked[np.searchsorted(tokens, rows["token"].to_numpy())] * rows["weight"].to_numpy()
    scored = (
        pa.table({"id": rows["id"], "score": product}).group_by("id").aggregate([("score", "sum")])
    )
    return scored.sort_by([("score_sum", "descending")]).slice(0, CANDIDATES)


def fuse(*results: pa.Table) -> pa.Table:
    """Return the passages of several searches by reciprocal rank; LanceDB's takes ``_rowid``."""
    ranked = [pa.table({"_rowid": result["id"], "id": result["id"]}) for result in results]
    return RRFReranker(K=60).rerank_multivector(ranked)


def main(model_name: str, vectors: str, beir: str) -> None:
    """Insert the shards, answer the questions, and print a score for each kind of search."""
    corpus, queries, qrels = load_retrieval(Path(beir))
    questions = [name for name in queries if any(grade > 0 for grade in qrels[name].values())]
    rows = {name: row for row, name in enumerate(corpus)}
    grades = [{rows[name]: grade for name, grade in qrels[of].items()} for of in questions]

    def ndcg(found: Iterable[pa.Table]) -> float:
        names = [table["id"].to_pylist()[:FOUND] for table in found]
        ranked = [[rows[name] for name in row] + [-1] * (FOUND - len(row)) for row in names]
        return float(metrics.ndcg(np.array(ranked), grades, at=FOUND).mean())

    model = BGEM3FlagModel(model_name)
    made = model.encode_queries([queries[name] for name in questions], return_sparse=True)
    with tempfile.TemporaryDirectory() as folder:
        passages, postings = open_tables(folder, vectors)
        dense = [search_dense(passages, vector) for vector in made["dense_vecs"]]
        sparse = [search_sparse(postings, weights) for weights in made["lexical_weights"]]
        print(f"LanceDB: {passages.count_rows()} passages, {len(questions)} questions, nDCG@10")
        hybrid = list(map(fuse, dense, sparse))
        for name, found in (("dense", dense), ("sparse", sparse), ("hybrid", hybrid)):
            print(f"{name:28}{ndcg(found):.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
