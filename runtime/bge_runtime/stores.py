"""Convert BGE-M3's lexical weights and ColBERT vectors to the types of vector stores.

Each function takes the output of ``encode`` for one text or for a list, and returns one value or
a list. Dense vectors need no conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from bge_runtime.encoding import find_not_finite, list_items, type_name
from bge_runtime.m3 import LexicalRows, LexicalWeights

if TYPE_CHECKING:
    from chromadb import SparseVector as ChromaSparseVector
    from qdrant_client.models import SparseVector as QdrantSparseVector


@overload
def to_qdrant_sparse(weights: Mapping[Any, Any]) -> QdrantSparseVector: ...
@overload
def to_qdrant_sparse(weights: LexicalRows) -> list[QdrantSparseVector]: ...
def to_qdrant_sparse(weights: Mapping[Any, Any] | LexicalRows) -> Any:
    """Return lexical weights as Qdrant's ``SparseVector``, for points and queries.

    Raises:
        ImportError: If qdrant-client is not installed.
        ValueError: If a key is not a token id.
    """
    try:
        from qdrant_client.models import SparseVector
    except ImportError as error:
        raise ImportError(
            f"Qdrant's SparseVector needs its client ({error}). Run `pip install qdrant-client`"
        ) from error
    rows = [SparseVector(indices=ids, values=values) for ids, values in _sorted_rows(weights)]
    return rows[0] if isinstance(weights, Mapping) else rows


@overload
def to_qdrant_multivector(vectors: NDArray[np.floating]) -> list[list[float]]: ...
@overload
def to_qdrant_multivector(vectors: Sequence[NDArray[np.floating]]) -> list[list[list[float]]]: ...
def to_qdrant_multivector(vectors: Any) -> Any:
    """Return ColBERT vectors as a multivector of Qdrant: one list per token.

    The collection needs a ``MultiVectorConfig`` with ``MAX_SIM``. Qdrant sums over the query's
    tokens, and ``colbert_score`` takes the mean, so results have the same order.

    Raises:
        TypeError: If they are not arrays with a vector per token.
        ValueError: If a component is not finite.
    """
    single = isinstance(vectors, np.ndarray) and vectors.ndim == 2
    name, wanted = "colbert_vecs", "an array or a list of arrays"
    rows = [vectors] if single else list_items(vectors, name, wanted, dims=3)
    for index, row in enumerate(rows):
        if not isinstance(row, np.ndarray) or row.ndim != 2:
            raise TypeError(
                f"{name}[{index}] must be an array of shape (tokens, dim), not {type_name(row)} "
                f"of shape {np.shape(row)}"
            )
        if (token := find_not_finite(row)) is not None:
            raise ValueError(
                f"{name}[{index}] has NaN or infinity in the vector of token {token}, and stores "
                "accept only finite numbers"
            )
    lists = [row.tolist() for row in rows]
    return lists[0] if single else lists


@overload
def to_milvus_sparse(weights: Mapping[Any, Any]) -> dict[int, float]: ...
@overload
def to_milvus_sparse(weights: LexicalRows) -> list[dict[int, float]]: ...
def to_milvus_sparse(weights: Mapping[Any, Any] | LexicalRows) -> Any:
    """Return lexical weights for a ``SPARSE_FLOAT_VECTOR`` field of Milvus, or a search in it.

    A text without weights becomes an empty row, which Milvus rejects.

    Raises:
        ValueError: If a key is not a token id.
    """
    rows = [dict(zip(ids, values, strict=True)) for ids, values in _sorted_rows(weights)]
    return rows[0] if isinstance(weights, Mapping) else rows


@overload
def to_chroma_sparse(weights: Mapping[Any, Any]) -> ChromaSparseVector: ...
@overload
def to_chroma_sparse(weights: LexicalRows) -> list[ChromaSparseVector]: ...
def to_chroma_sparse(weights: Mapping[Any, Any] | LexicalRows) -> Any:
    """Return lexical weights as Chroma's ``SparseVector``, for metadata and ``Knn`` queries.

    As of 1.5.9, only Chroma's cloud indexes them.

    Raises:
        ImportError: If chromadb is not installed.
        ValueError: If a key is not a token id.
    """
    try:
        from chromadb import SparseVector
    except ImportError as error:
        raise ImportError(
            f"Chroma's SparseVector needs its client ({error}). Run `pip install chromadb`"
        ) from error
    rows = [SparseVector(indices=ids, values=values) for ids, values in _sorted_rows(weights)]
    return rows[0] if isinstance(weights, Mapping) else rows


def _sorted_rows(
    weights: Mapping[Any, Any] | LexicalRows,
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield the token ids of each text, in ascending order, and their weights.

    Raises:
        TypeError: If they are not dictionaries.
        ValueError: If a key is not a token id, or a weight is not finite.
    """
    if not isinstance(weights, LexicalWeights):
        weights = LexicalWeights.from_dicts(weights)
    ends = weights.indptr
    if (entry := find_not_finite(weights.weights)) is not None:
        raise ValueError(
            f"lexical_weights[{np.searchsorted(ends, entry, side='right') - 1}] has weight "
            f"{weights.weights[entry]} for token {weights.token_ids[entry]}, and stores "
            "accept only finite numbers"
        )
    order = np.lexsort((weights.token_ids, np.repeat(np.arange(len(weights)), np.diff(ends))))
    ids, values = weights.token_ids[order].tolist(), weights.weights[order].tolist()
    for start, end in pairwise(ends.tolist()):
        yield ids[start:end], values[start:end]
