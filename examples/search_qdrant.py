"""Search Parquet shards in Qdrant: by dense vectors, sparse ones, both, and reranked by ColBERT.

    bge-embed MODEL BEIR/corpus.jsonl -o VECTORS --id _id --sparse --colbert --max-length 512
    python search_qdrant.py MODEL VECTORS BEIR

BEIR is a folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.tsv``. It prints nDCG@10; that
of the dense vectors is the one of ``bge-bench retrieval MODEL --task BEIR``. Needs `pip install
'bge-runtime[cpu,bulk]' qdrant-client`. Qdrant runs in this process, where every search compares all
passages; for a server, write ``QdrantClient(url)``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset
from qdrant_client import QdrantClient, models

from bge_bench.datasets import metrics
from bge_bench.datasets.data import load_retrieval
from bge_runtime import BGEM3FlagModel
from bge_runtime.stores import to_qdrant_multivector, to_qdrant_sparse

BATCH = 256
FOUND = 10
CANDIDATES = 100
"""Passages that each search hands to fusion, and fusion to ColBERT."""


def read_points(vectors: str) -> Iterator[list[models.PointStruct]]:
    """Yield the rows of all shards as points, some at a time: a shard need not fit into memory."""
    columns = ["id", "dense", "sparse", "colbert"]
    number = 0  # a point's id is a number or a UUID, so the passage's own goes into the payload
    for batch in pyarrow.dataset.dataset(vectors).to_batches(batch_size=BATCH, columns=columns):
        points = []
        for row in batch.to_pylist():
            vector = {
                "dense": row["dense"],
                "sparse": models.SparseVector(**row["sparse"]),
                "colbert": row["colbert"],
            }
            points.append(models.PointStruct(id=number, vector=vector, payload={"id": row["id"]}))
            number += 1
        if points:
            yield points


def create(client: QdrantClient, width: int, colbert_width: int) -> None:
    """Create a collection with three vectors a point."""
    dot, max_sim = models.Distance.DOT, models.MultiVectorComparator.MAX_SIM
    tokens = models.VectorParams(
        size=colbert_width,
        distance=dot,
        multivector_config=models.MultiVectorConfig(comparator=max_sim),
        hnsw_config=models.HnswConfigDiff(m=0),  # it reranks only, which needs no index
    )
    client.create_collection(
        "passages",
        vectors_config={"dense": models.VectorParams(size=width, distance=dot), "colbert": tokens},
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )


Requests = dict[str, list[models.QueryRequest]]


def make_queries(model: BGEM3FlagModel, questions: list[str]) -> Requests:
    """Return the queries of every kind of search, one for each question."""
    made = model.encode_queries(questions, return_sparse=True, return_colbert_vecs=True)
    dense, sparse = made["dense_vecs"].tolist(), to_qdrant_sparse(made["lexical_weights"])
    tokens = to_qdrant_multivector(made["colbert_vecs"])
    rrf = models.RrfQuery(rrf=models.Rrf(k=60))
    kinds = ("dense", "sparse", "hybrid", "hybrid, reranked by ColBERT")
    requests: Requests = {kind: [] for kind in kinds}
    for vector, weights, matrix in zip(dense, sparse, tokens, strict=True):
        both = [
            models.Prefetch(query=vector, using="dense", limit=CANDIDATES),
            models.Prefetch(query=weights, using="sparse", limit=CANDIDATES),
        ]
        fused = models.Prefetch(prefetch=both, query=rrf, limit=CANDIDATES)
        queries = (
            models.QueryRequest(query=vector, using="dense"),
            models.QueryRequest(query=weights, using="sparse"),
            models.QueryRequest(prefetch=both, query=rrf),
            models.QueryRequest(prefetch=fused, query=matrix, using="colbert"),
        )
        for name, query in zip(requests, queries, strict=True):
            requests[name].append(query.model_copy(update={"limit": FOUND, "with_payload": True}))
    return requests


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
    requests = make_queries(model, [queries[name] for name in questions])
    client = QdrantClient(":memory:")
    create(client, model.dim, len(requests["hybrid, reranked by ColBERT"][0].query[0]))
    for points in read_points(vectors):
        client.upsert("passages", points)
    print(f"Qdrant: {client.count('passages').count} passages, {len(questions)} questions, nDCG@10")
    for name, batch in requests.items():
        answers = client.query_batch_points("passages", batch)
        found = ndcg([point.payload["id"] for point in answer.points] for answer in answers)
        print(f"{name:28}{found:.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
