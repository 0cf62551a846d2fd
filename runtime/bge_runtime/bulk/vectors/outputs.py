"""From the outputs of a graph to columns of Arrow: dense, sparse and ColBERT vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bge_runtime.bundle import COLBERT_VECS, SENTENCE_EMBEDDING
from bge_runtime.encoding import Batch, DenseVectors, round_vectors
from bge_runtime.errors import NotFiniteError
from bge_runtime.m3 import LexicalWeights, M3Outputs
from bge_runtime.models import AnyFlagModel, BGEM3FlagModel

ARROW_FLOATS: Mapping[str, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}
"""Types of vectors by name."""


def _list_of(kind: pa.DataType, length: int = -1) -> pa.DataType:
    """Return a list without nulls, which Parquet reads three times as fast as one with them."""
    return pa.list_(pa.field("element", kind, nullable=False), length)


SPARSE_TYPE = pa.struct([("indices", _list_of(pa.int32())), ("values", _list_of(pa.float32()))])
"""Lexical weights of a text: token ids, ascending, and their weights."""


def output_fields(
    outputs: Sequence[str], *, dim: int, dtype: str, colbert_dim: int, colbert_dtype: str
) -> list[pa.Field]:
    """Return the columns of vectors.

    Args:
        outputs: Some of ``dense``, ``sparse`` and ``colbert``.
        dim: Components of a dense vector.
        dtype: Type of dense vectors: ``float32`` or ``float16``.
        colbert_dim: Components of a ColBERT vector, which may be more; 0 without them.
        colbert_dtype: Type of ColBERT vectors.
    """
    types = {
        "dense": _list_of(ARROW_FLOATS[dtype], dim),
        "sparse": SPARSE_TYPE,
        "colbert": _list_of(_list_of(ARROW_FLOATS[colbert_dtype], colbert_dim)),
    }
    return [pa.field(name, types[name]) for name in types if name in outputs]


def dense_array(vectors: NDArray[np.floating[Any]], dtype: str) -> pa.Array:
    """Return dense vectors as a column of lists of fixed size.

    Args:
        vectors: Shape: ``(n, dim)``.
        dtype: ``float32`` or ``float16``.

    Raises:
        NotFiniteError: If a component is too large for float16.
    """
    rounded = round_vectors(vectors, np.dtype(dtype), np.arange(len(vectors)))
    return _vectors_array(rounded)


def _vectors_array(vectors: NDArray[np.floating[Any]]) -> pa.Array:
    kind = _list_of(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)


def sparse_array(weights: LexicalWeights) -> pa.Array:
    """Return lexical weights, sorted by token id, as a column of structs."""
    ends = pa.array(weights.indptr.astype(np.int32))
    lists = [
        pa.ListArray.from_arrays(ends, pa.array(values), type=child.type)
        for values, child in zip((weights.token_ids, weights.weights), SPARSE_TYPE, strict=True)
    ]
    return pa.StructArray.from_arrays(lists, fields=list(SPARSE_TYPE))


def colbert_array(vectors: Sequence[NDArray[np.floating[Any]]], dtype: str, dim: int) -> pa.Array:
    """Return ColBERT vectors as a column of lists of vectors.

    Args:
        vectors: For each text, the vectors of its tokens. Shape: ``(tokens, dim)`` each.
        dtype: ``float32`` or ``float16``.
        dim: Components of a vector.

    Raises:
        NotFiniteError: If a component is too large for float16.
    """
    ends = np.zeros(len(vectors) + 1, np.int32)
    np.cumsum([len(tokens) for tokens in vectors], out=ends[1:])
    numbers = np.empty((ends[-1], dim), np.dtype(dtype))
    for row, (start, tokens) in enumerate(zip(ends.tolist(), vectors, strict=False)):
        rounded = round_vectors(tokens, numbers.dtype, np.full(len(tokens), row))
        numbers[start : start + len(tokens)] = rounded
    flat = _vectors_array(numbers)
    return pa.ListArray.from_arrays(pa.array(ends), flat, type=_list_of(flat.type))


class Outputs(Protocol):
    """The outputs of the texts of a window."""

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        """Keep the outputs of a batch, at the rows that it names."""
        ...

    def arrays(self) -> dict[str, pa.Array]:
        """Return a column for each output, with a row for each text."""
        ...


class OutputColumns:
    """Makes the columns of one model's outputs.

    Attributes:
        names: Some of ``dense``, ``sparse`` and ``colbert``.
        fields: Their columns.
    """

    def __init__(
        self, model: AnyFlagModel, names: Sequence[str], *, dtype: str, colbert_dtype: str
    ) -> None:
        """Keep what the columns depend on."""
        card = model.bundle.manifest.model
        self.names = tuple(names)
        self.fields = output_fields(
            names,
            dim=model.dim,
            dtype=dtype,
            colbert_dim=_colbert_dim(model),
            colbert_dtype=colbert_dtype,
        )
        self._model, self._card = model, card
        self._dtype, self._colbert_dtype = dtype, colbert_dtype

    def collect(self, count: int, graph_outputs: Sequence[str]) -> Outputs:
        """Return what collects the outputs of ``count`` texts."""
        model = self._model
        if not isinstance(model, BGEM3FlagModel):
            vectors = DenseVectors(
                count,
                model.dim,
                dtype=model.vector_dtype,
                normalized=model.normalize_embeddings,
            )
            return _DenseOutputs(vectors, self._dtype, self._limits)
        collected = M3Outputs(
            count,
            graph_outputs,
            self._card,
            normalized=model.normalize_embeddings,
            truncate_dim=model.truncate_dim,
            by_id=True,
        )
        return _M3Columns(collected, model, self._dtype, self._colbert_dtype, self._limits)

    @property
    def _limits(self) -> Mapping[str, float]:
        """Largest component of each of the graph's outputs that its column can hold."""
        if self._model.normalize_embeddings:
            return {}
        names = {SENTENCE_EMBEDDING: self._dtype, COLBERT_VECS: self._colbert_dtype}
        return {name: float(np.finfo(dtype).max) for name, dtype in names.items()}


def _check_sizes(
    batch: Batch,
    outputs: Sequence[NDArray[np.float32]],
    names: Sequence[str],
    limits: Mapping[str, float],
) -> None:
    """Check that vectors fit into their columns, before they are kept.

    Raises:
        NotFiniteError: If a component is too large.
    """
    for name, values in zip(names, outputs, strict=True):
        if name not in limits:
            continue
        if name == COLBERT_VECS:
            values = np.where(batch.attention_mask[:, 1:, None] != 0, values, 0)  # noqa: PLW2901
        largest = np.abs(values).reshape(len(values), -1).max(axis=1, initial=0)
        row = int(largest.argmax())
        if largest[row] > limits[name]:
            raise NotFiniteError(
                f"text {batch.rows[row]} has a vector with a component of {largest[row]:g}, which "
                "is too large for float16. Pass dtype='float32' and colbert_dtype='float32', or "
                "normalize_embeddings=True"
            )


class _DenseOutputs:
    def __init__(self, collected: DenseVectors, dtype: str, limits: Mapping[str, float]) -> None:
        self._collected, self._dtype, self._limits = collected, dtype, limits

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        _check_sizes(batch, outputs, [SENTENCE_EMBEDDING], self._limits)
        self._collected.add(batch, outputs)

    def arrays(self) -> dict[str, pa.Array]:
        return {"dense": dense_array(self._collected.vectors, self._dtype)}


class _M3Columns:
    def __init__(
        self,
        collected: M3Outputs,
        model: BGEM3FlagModel,
        dtype: str,
        colbert_dtype: str,
        limits: Mapping[str, float],
    ) -> None:
        self._collected, self._model = collected, model
        self._dtype, self._colbert_dtype = dtype, colbert_dtype
        self._limits = limits

    def add(self, batch: Batch, outputs: list[NDArray[np.float32]]) -> None:
        _check_sizes(batch, outputs, self._collected.names, self._limits)
        self._collected.add(batch, outputs)

    def arrays(self) -> dict[str, pa.Array]:
        found, rounded = self._collected, self._model.vector_dtype
        arrays = {}
        if found.dense is not None:
            dense = round_vectors(found.dense, rounded, np.arange(len(found.dense)))
            arrays["dense"] = dense_array(dense, self._dtype)
        weights = found.lexical()
        if weights is not None:
            # As in the dictionaries of `encode`, whose weights have the type of dense vectors.
            arrays["sparse"] = sparse_array(weights.astype(rounded).astype(np.dtype(np.float32)))
        if found.colbert is not None:
            dim = _colbert_dim(self._model)
            arrays["colbert"] = colbert_array(found.colbert, self._colbert_dtype, dim)
        return arrays


def _colbert_dim(model: AnyFlagModel) -> int:
    """Return the components of a ColBERT vector, 0 without them."""
    dim = model.bundle.manifest.model.colbert_dim or 0
    return min(model.truncate_dim or dim, dim)
