"""From the rows of files to windows of texts: columns, templates, empty texts and bad rows."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bge_runtime.bulk.chunks import Chunk
from bge_runtime.bulk.files import InputError
from bge_runtime.bulk.readers import JSON_TEXT, BadRow, RowBatch, is_json_text, list_names
from bge_runtime.bulk.writers import row_sizes

WINDOW_TEXTS = 2048
"""Most texts of a window: those of `encode`. Sorted by length, they need almost no padding."""

WINDOW_CHARACTERS = 1 << 22
"""Most characters of a window, so that memory stays flat for long texts: a million tokens."""

COLBERT_CHARACTERS = 1 << 17
"""The same with ColBERT vectors, of which BGE-M3's take 4 KB per token: 0.15 GB in English."""

WINDOW_BYTES = 1 << 25
"""Most bytes of a window's other columns, so that memory stays flat for large ones, too."""

_LARGEST_TEXT = 1 << 26
"""Characters of the longest text: a longer one is probably a mistake, and would fill memory."""

SplitTexts = Callable[[list[str]], Sequence[Sequence[Chunk]]]
"""Returns the chunks of each text."""


class Reject(NamedTuple):
    """A row that is not embedded.

    Attributes:
        row: Its number in the input, from 0.
        id: Its id; None if it cannot be read.
        reason: Why. It continues "row 3".
        empty: Whether it has no text, which is no mistake.
    """

    row: int
    id: Any
    reason: str
    empty: bool = False


@dataclass(frozen=True, kw_only=True)
class Window:
    """Consecutive texts of a shard that are batched together.

    Attributes:
        shard: Number of the shard.
        texts: The texts.
        rows: For each text, the number of its row in the input. Shape: ``(texts,)``.
        columns: For each text, the columns that are kept.
        rejects: Rows without a text, up to the next window.
        rows_read: Rows of the input that it covers.
        last: Whether it is the last one of its shard.
    """

    shard: int
    texts: list[str]
    rows: NDArray[np.int64]
    columns: pa.Table
    rejects: list[Reject]
    rows_read: int
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of the input are used, and how.

    Attributes:
        text: Columns that hold the text.
        template: How they are joined; None puts each on a line of its own.
        id: Column that identifies a row; None for the number of the row.
        keep: Columns that the output keeps.
    """

    text: tuple[str, ...]
    template: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All columns that are read, each once."""
        ids = () if self.id is None else (self.id,)
        return list(dict.fromkeys((*ids, *self.text, *self.keep)))

    def check(self, schema: pa.Schema, *, added: Sequence[str]) -> None:
        """Check whether an input has the columns, with types that fit.

        Args:
            schema: The columns of the input.
            added: Names of the columns that the output adds.

        Raises:
            ValueError: If the template or a name is wrong.
            InputError: If the input does not have a column, or its type does not fit.
        """
        if not self.text:
            raise ValueError("text is empty; name the column with the texts")
        if self.template is not None:
            _check_template(self.template, self.text)
        for name in self.names:
            if len(schema.get_all_field_indices(name)) != 1:
                has = list_names(schema.names, name) or "none"
                raise InputError(f"the input has no single column {name!r}; it has {has}")
        for name in self.text:
            if is_json_text(schema.field(name)):
                raise InputError(
                    f"column {name!r} holds objects or lists of JSON, and texts are strings; name "
                    "another column, or convert it"
                )
            if not _is_text(schema.field(name).type):
                raise InputError(
                    f"column {name!r} holds {schema.field(name).type}, and texts are strings; name "
                    "another column, or convert it"
                )
        for name in self.keep:
            if name in added:
                raise InputError(
                    f"cannot keep column {name!r}: the output adds one of that name; rename it in "
                    "the input"
                )


def select_columns(schema: pa.Schema, columns: Columns) -> pa.Schema:
    """Return the part of an input's schema that is read, without metadata of its files."""
    found = [(schema.field(name), is_json_text(schema.field(name))) for name in columns.names]
    return pa.schema(
        [
            pa.field(each.name, _plain_type(each.type), metadata=JSON_TEXT if is_json else None)
            for each, is_json in found
        ]
    )


def row_fields(schema: pa.Schema, columns: Columns, *, chunks: bool) -> list[pa.Field]:
    """Return the columns of the output that come before the vectors."""
    id_type = pa.int64() if columns.id is None else schema.field(columns.id).type
    places = [pa.field(name, pa.int32()) for name in ("chunk", "start", "end")]
    return [
        pa.field("id", id_type),
        *(places if chunks else []),
        *(schema.field(name).remove_metadata() for name in columns.keep),
    ]


@dataclass
class _Texts:
    """Rows that have been read, and are not yet in a window."""

    texts: list[str] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    columns: list[pa.Table] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    characters: int = 0
    size_bytes: int = 0


class WindowReader:
    """Makes windows of the rows of a shard.

    Where a window ends depends on the rows alone, and not on how they are read.
    """

    def __init__(
        self,
        columns: Columns,
        fields: Sequence[pa.Field],
        *,
        on_empty: str,
        window_characters: int,
        split: SplitTexts | None,
    ) -> None:
        """Keep how rows become texts.

        Args:
            columns: Which columns to use.
            fields: The columns of the output that come before the vectors.
            on_empty: ``"skip"`` leaves out rows without text, ``"stop"`` refuses them, and
                ``"embed"`` embeds empty texts; a row of nulls is a bad one then.
            window_characters: Most characters of a window.
            split: Splits texts into chunks; None for whole texts.
        """
        self._columns, self._schema = columns, pa.schema(fields)
        self._on_empty, self._limit, self._split = on_empty, window_characters, split
        # Not str.format, which reads attributes where the name of a column has a dot.
        self._parts: list[tuple[str, int | None]] = [
            ("\n" if place else "", place) for place in range(len(columns.text))
        ]
        if columns.template is not None:
            self._parts = [
                (before, None if name is None else columns.text.index(name))
                for before, name, _, _ in string.Formatter().parse(columns.template)
            ]
        # Each chunk keeps its own part of the text, and not the whole text again.
        whole = len(columns.text) == 1 and columns.template is None
        self._sliced = [name for name in columns.text if whole and name in columns.keep]

    def read(
        self,
        shard: int,
        segments: Iterator[tuple[int, Iterator[RowBatch]]],
        *,
        start: int,
        end: int,
    ) -> Iterator[Window]:
        """Yield the windows of a shard, at least one.

        Args:
            shard: Number of the shard.
            segments: Parts of files: the row of the input with which the file begins, and its
                rows.
            start: First row of the shard, in the input.
            end: The row after its last one.
        """
        waiting = _Texts()
        for offset, batches in segments:
            for batch in batches:
                texts, rows, table, rejects = self._texts_of(batch, offset)
                waiting.rejects += rejects
                taken = 0
                for position, (text, size) in enumerate(
                    zip(texts, self._sizes(table), strict=True)
                ):
                    count = len(waiting.texts) + position - taken
                    full = (
                        count == WINDOW_TEXTS
                        or waiting.characters + len(text) > self._limit
                        or waiting.size_bytes + size > WINDOW_BYTES
                    )
                    if count and full:
                        self._add(waiting, texts, rows, table, slice(taken, position))
                        until = int(rows[position])
                        yield from self._cut(waiting, shard, start, until)
                        rest = [each for each in waiting.rejects if each.row >= until]
                        start, taken, waiting = until, position, _Texts(rejects=rest)
                    waiting.characters += len(text)
                    waiting.size_bytes += size
                self._add(waiting, texts, rows, table, slice(taken, len(texts)))
        *windows, last = self._cut(waiting, shard, start, end)
        yield from windows
        yield replace(last, last=True)

    def _sizes(self, table: pa.Table) -> Iterable[int]:
        """Return the bytes of each row of the columns that are kept."""
        kept: list[int] = row_sizes(table).tolist()
        return kept

    @staticmethod
    def _add(
        waiting: _Texts,
        texts: list[str],
        rows: NDArray[np.int64],
        table: pa.Table,
        part: slice,
    ) -> None:
        if part.start < part.stop:
            waiting.texts += texts[part]
            waiting.rows.append(rows[part])
            waiting.columns.append(table.slice(part.start, part.stop - part.start))

    def _cut(self, waiting: _Texts, shard: int, start: int, until: int) -> Iterator[Window]:
        """Yield the window of the texts that are waiting; several if their chunks are large."""
        texts, rows = waiting.texts, np.concatenate([np.empty(0, np.int64), *waiting.rows])
        columns = pa.concat_tables(waiting.columns) if waiting.columns else None
        rejects = [each for each in waiting.rejects if each.row < until]
        if columns is None:
            pieces = iter([(texts, rows, self._schema.empty_table())])
        elif self._split is None:
            pieces = iter([(texts, rows, columns)])
        else:
            pieces = self._chunk(texts, rows, columns)
        for number, (part, rows_of, table) in enumerate(pieces):
            yield Window(
                shard=shard,
                texts=part,
                rows=rows_of,
                columns=table.select(self._schema.names).combine_chunks(),
                rejects=[] if number else rejects,
                rows_read=0 if number else until - start,
            )

    def _chunk(
        self, texts: list[str], rows: NDArray[np.int64], columns: pa.Table
    ) -> Iterator[tuple[list[str], NDArray[np.int64], pa.Table]]:
        """Yield the chunks of texts with their rows and columns, a limited size at a time."""
        assert self._split is not None
        chunks = self._split(texts)
        places = [
            (parent, number, chunk)
            for parent, each in enumerate(chunks)
            for number, chunk in enumerate(each)
        ]
        rest = columns.drop_columns(self._sliced)
        sizes = row_sizes(rest)[[parent for parent, _, _ in places]]
        ends = np.cumsum(sizes)
        start = 0
        while start < len(places):
            before = ends[start] - sizes[start]
            end = max(start + 1, int(np.searchsorted(ends, before + WINDOW_BYTES, side="right")))
            some = places[start:end]
            parents = [parent for parent, _, _ in some]
            parts = [texts[parent][chunk.start : chunk.end] for parent, _, chunk in some]
            table = rest.take(pa.array(parents))
            for name, values in (
                ("chunk", [number for _, number, _ in some]),
                ("start", [chunk.start for _, _, chunk in some]),
                ("end", [chunk.end for _, _, chunk in some]),
            ):
                table = table.append_column(name, pa.array(values, pa.int32()))
            for name in self._sliced:
                table = table.append_column(name, pa.array(parts, self._schema.field(name).type))
            yield parts, rows[parents], table
            start = end

    def _texts_of(
        self, batch: RowBatch, offset: int
    ) -> tuple[list[str], NDArray[np.int64], pa.Table, list[Reject]]:
        """Return texts, their rows in the input, their columns, and the rows without a text."""
        columns, rows = batch.columns, batch.rows + offset
        ids = pa.array(rows) if self._columns.id is None else columns[self._columns.id]
        names = [each.name for each in self._schema if each.name in self._columns.keep]
        table = pa.table([ids, *(columns[name] for name in names)], names=["id", *names])
        found: list[str | BadRow] = [
            self._text_of(values) for values in zip(*self._text_columns(columns), strict=True)
        ]
        if self._columns.id is not None and ids.null_count:
            for nowhere in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)):
                found[int(nowhere)] = BadRow(0, f"has no id in column {self._columns.id!r}")
        rejects = [Reject(each.row + offset, None, each.reason) for each in batch.bad]
        if not any(isinstance(each, BadRow) for each in found):
            return [str(each) for each in found], rows, table, rejects
        good = []
        for position, each in enumerate(found):
            if isinstance(each, BadRow):
                row, id_ = int(rows[position]), _value(ids[position])
                rejects.append(Reject(row, id_, each.reason, empty=each is _EMPTY))
            else:
                good.append(position)
        rejects.sort(key=lambda reject: reject.row)
        texts = [str(found[position]) for position in good]
        return texts, rows[good], table.take(pa.array(good, pa.int64())), rejects

    def _text_columns(self, columns: pa.RecordBatch) -> list[list[str | BadRow | None]]:
        return [_strings(columns[name], name) for name in self._columns.text]

    def _text_of(self, values: Sequence[str | BadRow | None]) -> str | BadRow:
        for value in values:
            if isinstance(value, BadRow):
                return value
        parts = ["" if value is None else str(value) for value in values]
        text = "".join(
            before + ("" if place is None else parts[place]) for before, place in self._parts
        )
        if len(text) > _LARGEST_TEXT:
            return BadRow(0, f"is too large: {len(text):,} characters, of {_LARGEST_TEXT:,}")
        if self._on_empty == "embed":
            return text if any(value is not None for value in values) else _NULL
        # What the template adds is not text of the row.
        return text if any(part and not part.isspace() for part in parts) else _EMPTY


_EMPTY = BadRow(0, "has no text")
_NULL = BadRow(0, "has a null instead of a text")


def _strings(column: pa.Array, name: str) -> list[str | BadRow | None]:
    try:
        values: list[str | BadRow | None] = column.to_pylist()
    except UnicodeDecodeError:
        values = []
        for scalar in column:
            try:
                values.append(scalar.as_py())
            except UnicodeDecodeError as error:
                values.append(BadRow(0, f"has invalid UTF-8 in column {name!r}: {error.reason}"))
    return values


def _value(scalar: pa.Scalar) -> Any:
    """Return the value of an id, or None where it cannot be read."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return None


def _check_template(template: str, text: Sequence[str]) -> None:
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template={template!r} is not a format: {error}") from error
    names = [name for _, name, _, _ in fields if name is not None]
    plain = all(not spec and conversion is None for _, _, spec, conversion in fields)
    if not plain or not set(names) <= set(text) or not names:
        places = " ".join(f"{{{name}}}" for name in text)
        raise ValueError(
            f"template={template!r} must hold columns of text in braces, and nothing else in "
            f"braces: {places}"
        )


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(_plain_type(kind))
        for check in (pa.types.is_string, pa.types.is_large_string, _is_string_view)
    )


def _is_string_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without a dictionary, whose values are the same."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
