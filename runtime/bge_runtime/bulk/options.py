"""What a job computes and writes, as a rerun must ask for it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bge_runtime.bulk.outputs import ARROW_FLOATS
from bge_runtime.bulk.rows import Columns
from bge_runtime.encoding import check_positive

_ROWS_PER_SHARD = 16_384
_COLBERT_ROWS_PER_SHARD = 2048
_CHOICES = {
    "input_format": (None, "parquet", "arrow", "jsonl", "csv", "tsv", "text"),
    "output_format": ("parquet", "npy", "jsonl", "lance"),
    "on_error": ("stop", "skip"),
    "on_empty": ("skip", "embed", "stop"),
    "dtype": tuple(ARROW_FLOATS),
    "colbert_dtype": tuple(ARROW_FLOATS),
}


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How texts become vectors.

    Attributes:
        outputs: Some of ``dense``, ``sparse`` and ``colbert``.
        dtype: Type of dense vectors.
        colbert_dtype: Type of ColBERT vectors.
        query: Whether texts are queries, which get the instruction for them.
        max_length: Maximum tokens of a text.
        batch_size: Maximum texts of a batch.
    """

    outputs: tuple[str, ...]
    dtype: str
    colbert_dtype: str
    query: bool
    max_length: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a job does; the names are those of `bge_runtime.bulk.embed_dataset`.

    Attributes:
        columns: Which columns of the input to use.
        max_length: Maximum tokens of a text; None for the model's default.
        rows_per_shard: Rows of the input in a shard.
    """

    columns: Columns
    input_format: str | None
    output_format: str
    query: bool
    max_length: int | None
    batch_size: int
    return_dense: bool
    return_sparse: bool
    return_colbert_vecs: bool
    dtype: str
    colbert_dtype: str
    chunk_tokens: int | None
    overlap: int
    rows_per_shard: int
    on_error: str
    on_empty: str

    def __post_init__(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ValueError: If a value is out of range.
        """
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        check_positive("rows_per_shard", self.rows_per_shard)
        check_positive("batch_size", self.batch_size)
        if not self.outputs:
            raise ValueError(
                "nothing is asked for: return_dense, return_sparse and return_colbert_vecs are "
                "all False"
            )
        if self.chunk_tokens is None and self.overlap:
            raise ValueError(f"overlap={self.overlap} needs chunk_tokens, the size of a chunk")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The columns of vectors that are asked for."""
        asked = {
            "dense": self.return_dense,
            "sparse": self.return_sparse,
            "colbert": self.return_colbert_vecs,
        }
        return tuple(name for name, wanted in asked.items() if wanted)

    def encode_options(self, max_length: int) -> EncodeOptions:
        """Return how texts become vectors, with ``max_length`` for texts that are not chunks."""
        return EncodeOptions(
            outputs=self.outputs,
            dtype=self.dtype,
            colbert_dtype=self.colbert_dtype,
            query=self.query,
            max_length=self.chunk_tokens or self.max_length or max_length,
            batch_size=self.batch_size,
        )


def default_rows_per_shard(*, colbert: bool) -> int:
    """Return the rows of a shard: 25 to 67 MB of dense vectors, 1 GB of ColBERT vectors."""
    return _COLBERT_ROWS_PER_SHARD if colbert else _ROWS_PER_SHARD


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(each) for each in choices)
        raise ValueError(f"{name} must be one of {listed}, but is {value!r}")
