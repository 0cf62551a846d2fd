"""Hybrid search with BGE-M3 and Qdrant: dense and sparse vectors, fused by reciprocal rank.

    python hybrid_qdrant.py bge-m3 "how do heat pumps work?"

It inserts five passages and prints the best three of each query. Qdrant runs inside this process;
for a server, write `QdrantClient(url)`. Needs `pip install 'bge-runtime[cpu]' qdrant-client`.
"""

from __future__ import annotations

import sys

from qdrant_client import QdrantClient, models

from bge_runtime import BGEM3FlagModel
from bge_runtime.stores import to_qdrant_sparse

PASSAGES = [
    "A heat pump moves warmth from the air outside into the house.",
    "Rye is a grain that grows on poor soil.",
    "The tram to the harbour runs every ten minutes.",
    "Error E-4017 means that the filter must be cleaned.",
    "Snow melts first on roofs that are poorly insulated.",
]


def main(model_name: str, *queries: str) -> None:
    """Insert the passages, and print what each query finds."""
    model = BGEM3FlagModel(model_name)
    client = QdrantClient(":memory:")
    client.create_collection(
        "passages",
        vectors_config={"dense": models.VectorParams(size=model.dim, distance=models.Distance.DOT)},
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )
    made = model.encode_corpus(PASSAGES, return_sparse=True)
    sparse = to_qdrant_sparse(made["lexical_weights"])
    rows = zip(PASSAGES, made["dense_vecs"].tolist(), sparse, strict=True)
    points = [
        models.PointStruct(id=number, vector={"dense": one, "sparse": two}, payload={"text": text})
        for number, (text, one, two) in enumerate(rows)
    ]
    client.upsert("passages", points)
    asked = model.encode_queries(list(queries), return_sparse=True)
    sparse = to_qdrant_sparse(asked["lexical_weights"])
    for query, one, two in zip(queries, asked["dense_vecs"].tolist(), sparse, strict=True):
        both = [
            models.Prefetch(query=one, using="dense"),
            models.Prefetch(query=two, using="sparse"),
        ]
        fusion = models.FusionQuery(fusion=models.Fusion.RRF)
        found = client.query_points("passages", prefetch=both, query=fusion, limit=3).points
        print(query, *(f"  {each.score:.3f}  {each.payload['text']}" for each in found), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
