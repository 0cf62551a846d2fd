"""Search Parquet shards in Milvus Lite: by dense vectors, by sparse ones, and by both.

    bge-embed MODEL BEIR/corpus.jsonl -o VECTORS --id _id --sparse --max-length 512
    python search_milvus.py MODEL VECTORS BEIR

BEIR is a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv``. It prints nDCG@10; that
of the dense vectors is the one of ``bge-bench retrieval MODEL --task BEIR``. Needs `pip install
'bge-runtime[cpu,bulk]' pymilvus milvus-lite`. The index FLAT compares with every passage; for a
server, write ``MilvusClient(uri)`` and ``index_type="HNSW"``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
from pymilvus import AnnSearchRequest, DataType, MilvusClient, RRFRanker

from bge_bench.datasets import metrics
from bge_bench.datasets.data import load_retrieval
from bge_runtime import BGEM3FlagModel
from bge_runtime.stores import to_milvus_sparse

BATCH = 256
FOUND = 10
CANDIDATES = 100
"""Passages that each search hands to fusion."""


def read_rows(vectors: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of all shards, some at a time: a shard need not fit into memory."""
    columns = ["id", "dense", "sparse"]
    for batch in pyarrow.dataset.dataset(vectors).to_batches(batch_size=BATCH, columns=columns):
        rows = batch.to_pylist()
        for row in rows:
            weights = row["sparse"]
            row["sparse"] = dict(zip(weights["indices"], weights["values"], strict=True))
        # Milvus refuses a row without weights: a text of which no token counts.
        if rows := [row for row in rows if row["sparse"]]:
            yield rows


def create(client: MilvusClient, width: int) -> None:
    """Create a collection with both vectors."""
    schema = client.create_schema()
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=width)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="IP")
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("passages", schema=schema, index_params=index)


def search(client: MilvusClient, dense: list[Any], sparse: list[Any]) -> dict[str, list[Any]]:
    """Return what is found by dense vectors, by sparse ones, and by both, for each query."""
    both = [
        AnnSearchRequest(data=data, anns_field=field, param={"metric_type": "IP"}, limit=CANDIDATES)
        for field, data in (("dense", dense), ("sparse", sparse))
    ]
    return {
        "dense": client.search("passages", data=dense, anns_field="dense", limit=FOUND),
        "sparse": client.search("passages", data=sparse, anns_field="sparse", limit=FOUND),
        "hybrid": client.hybrid_search("passages", both, ranker=RRFRanker(60), limit=FOUND),
    }


def main(model_name: str, vectors: str, beir: str) -> None:
    """Insert the shards, answer the questions, and print a score for each kind of search."""
    corpus, queries, qrels = load_retrieval(Path(beir))
    questions = [name for name in queries if any(grade > 0 for grade in qrels[name].values())]
    rows = {name: row for row, name in enumerate(corpus)}
    grades = [{rows[name]: grade for name, grade in qrels[of].items()} for of in questions]

    def ndcg(found: Iterable[list[str]]) -> float:
        ranked = [[rows[name] for name in names] + [-1] * (FOUND - len(names)) for names in found]
        return float(metrics.ndcg(np.array(ranked), grades, at=FOUND).mean())

    model = BGEM3FlagModel(model_name)
    made = model.encode_queries([queries[name] for name in questions], return_sparse=True)
    dense, sparse = list(made["dense_vecs"]), to_milvus_sparse(made["lexical_weights"])
    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(f"{folder}/milvus.db")
        create(client, model.dim)
        inserted = 0
        for batch in read_rows(vectors):
            inserted += client.insert("passages", batch)["insert_count"]
        print(f"Milvus Lite: {inserted} passages, {len(questions)} questions, nDCG@10")
        for name, answers in search(client, dense, sparse).items():
            found = ndcg([hit["id"] for hit in answer] for answer in answers)
            print(f"{name:28}{found:.5f}")
        client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
