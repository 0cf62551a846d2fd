"""What a job computes and writes, as a rerun must ask for it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from bge_runtime.bulk.rows import Columns
from bge_runtime.encoding import check_positive

_ROWS_PER_SHARD = 16_384
_COLBERT_ROWS_PER_SHARD = 2048
_CHOICES = {
    "input_format": (None, "parquet", "arrow", "jsonl", "csv", "tsv", "text"),
    "output_format": ("parquet", "npy", "jsonl", "lance"),
    "on_error": ("stop", "skip"),
    "on_empty": ("skip", "embed", "stop"),
    "dtype": ("float32", "float16"),
    "colbert_dtype": ("float32", "float16"),
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


class JobArguments(TypedDict, total=False):
    """Arguments of `bge_runtime.bulk.embed_dataset` that say what is computed and written.

    Keys:
        text: Column with the texts, or several. Default: ``"text"``.
        template: How several columns make a text, such as ``"{title}: {body}"``. Default: each is
            on a line of its own.
        id: Column that identifies a row. Default: the number of the row, from 0.
        keep: Columns that the output keeps, in this order.
        input_format: ``parquet``, ``arrow``, ``jsonl``, ``csv``, ``tsv`` or ``text``. Default: by
            the suffix.
        output_format: ``parquet``, ``npy``, ``jsonl`` or ``lance``. Default: ``parquet``.
        query: Whether texts are queries, which get the instruction for them.
        max_length: Maximum tokens of a text. Default: the model's, mostly 512.
        batch_size: Maximum texts of a batch. Default: 256.
        return_dense: Whether to write dense vectors. Default: True.
        return_sparse: Whether to write lexical weights, for BGE-M3.
        return_colbert_vecs: Whether to write ColBERT vectors, for BGE-M3.
        dtype: Type of dense vectors: ``float32`` or ``float16``. Default: ``float32``.
        colbert_dtype: Type of ColBERT vectors. Default: ``float16``.
        chunk_tokens: Split texts into chunks of so many tokens, special tokens included, with a
            row for each. Default: truncate texts at ``max_length``.
        overlap: Tokens that consecutive chunks share. Default: 0.
        rows_per_shard: Rows of the input in a shard. Default: 16,384, or 2,048 with ColBERT
            vectors.
        on_error: What to do with a row that cannot be embedded: ``stop``, or ``skip`` it and list
            it in the rejects file. Default: ``stop``.
        on_empty: What to do with a row whose columns of text are all null, empty or white space:
            ``skip`` it, and list it in the rejects file; ``embed`` it, unless all are null, which
            is an error as of ``on_error``; or ``stop``. Default: ``skip``.
    """

    text: str | Sequence[str]
    template: str | None
    id: str | None
    keep: Sequence[str]
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
    rows_per_shard: int | None
    on_error: str
    on_empty: str


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What a job computes and writes; the names are those of `JobArguments`.

    Attributes:
        columns: Which columns of the input to use.
    """

    columns: Columns
    input_format: str | None = None
    output_format: str = "parquet"
    query: bool = False
    max_length: int | None = None
    batch_size: int = 256
    return_dense: bool = True
    return_sparse: bool = False
    return_colbert_vecs: bool = False
    dtype: str = "float32"
    colbert_dtype: str = "float16"
    chunk_tokens: int | None = None
    overlap: int = 0
    rows_per_shard: int = _ROWS_PER_SHARD
    on_error: str = "stop"
    on_empty: str = "skip"

    @classmethod
    def from_arguments(cls, arguments: JobArguments) -> JobOptions:
        """Return the options that a user's arguments mean.

        Raises:
            TypeError: If there is no argument of a name, or a value has another type.
            ValueError: If a value is out of range.
        """
        given: dict[str, Any] = dict(arguments)
        unknown = given.keys() - JobArguments.__annotations__.keys()
        if unknown:
            raise TypeError(f"embed_dataset() has no argument {min(unknown)!r}")
        for name, value in given.items():
            _check_type(name, value)
        columns = Columns(
            text=_names(given.pop("text", "text")),
            template=given.pop("template", None),
            id=given.pop("id", None),
            keep=tuple(dict.fromkeys(_names(given.pop("keep", ())))),
        )
        if given.get("rows_per_shard") is None:
            colbert = bool(given.get("return_colbert_vecs"))
            given["rows_per_shard"] = default_rows_per_shard(colbert=colbert)
        return cls(columns=columns, **given)

    def __post_init__(self) -> None:
        """Check what can be checked without the model.

        Raises:
            ValueError: If a value is out of range.
        """
        for name, choices in _CHOICES.items():
            _check_choice(name, getattr(self, name), choices)
        if "id" in self.columns.keep:
            raise ValueError(
                "cannot keep column 'id': the output adds one of that name. Pass id='id' instead "
                "of keep='id' to write the input's there, or rename it in the input"
            )
        check_positive("rows_per_shard", self.rows_per_shard)
        check_positive("batch_size", self.batch_size)
        if self.max_length is not None:
            check_positive("max_length", self.max_length)
            if self.chunk_tokens is not None:
                raise ValueError(
                    f"max_length={self.max_length} cuts texts, and chunk_tokens="
                    f"{self.chunk_tokens} splits them instead; pass one of them"
                )
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
        """Return how texts become vectors, cut at ``max_length`` tokens."""
        return EncodeOptions(
            outputs=self.outputs,
            dtype=self.dtype,
            colbert_dtype=self.colbert_dtype,
            query=self.query,
            max_length=max_length,
            batch_size=self.batch_size,
        )


def default_rows_per_shard(*, colbert: bool) -> int:
    """Return the rows of a shard: 25 to 67 MB of dense vectors, 1 GB of ColBERT vectors."""
    return _COLBERT_ROWS_PER_SHARD if colbert else _ROWS_PER_SHARD


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _check_type(name: str, value: Any) -> None:
    if name in ("text", "keep"):
        wanted = "the name of a column, or a list of names"
        listed = isinstance(value, Sequence) and not isinstance(value, bytes)
        fits = listed and all(isinstance(each, str) for each in value)
    elif name in ("id", "template"):
        wanted = "the name of one column" if name == "id" else "a string"
        fits = value is None or isinstance(value, str)
        wanted += " or None"
    elif name.startswith("return_") or name == "query":
        wanted, fits = "True or False", isinstance(value, bool)
    else:
        return  # numbers and choices are checked with their ranges
    if not fits:
        raise TypeError(f"{name} must be {wanted}, but is {value!r}")


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(each) for each in choices)
        raise ValueError(f"{name} must be one of {listed}, but is {value!r}")
