"""Vectors for tables of Arrow in memory, as Ray and Spark hand them to a process."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bge_runtime.bulk.embed import LocalEngine
from bge_runtime.bulk.files import InputError
from bge_runtime.bulk.options import JobOptions
from bge_runtime.bulk.readers import RowBatch
from bge_runtime.bulk.rows import (
    COLBERT_CHARACTERS,
    WINDOW_CHARACTERS,
    Columns,
    Window,
    WindowReader,
)
from bge_runtime.bulk.vectors import Pipeline, PreparedWindow
from bge_runtime.models import AnyFlagModel


class TableEmbedder:
    """Embeds the texts of tables with one model.

    Attributes:
        fields: The columns of vectors: ``dense``, ``sparse`` and ``colbert``, those asked for.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | AnyFlagModel,
        *,
        text: str | Sequence[str] = "text",
        template: str | None = None,
        query: bool = False,
        instruction: str | None = None,
        max_length: int | None = None,
        batch_size: int = 256,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        dtype: str = "float32",
        colbert_dtype: str = "float16",
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a model. The arguments are those of `bge_runtime.bulk.embed_dataset`.

        Raises:
            ValueError: If an argument is wrong, or does not fit the model.
            BgeError: If the model cannot be opened.
        """
        columns = (text,) if isinstance(text, str) else tuple(text)
        options = JobOptions(
            columns=Columns(text=columns, template=template),
            query=query,
            max_length=max_length,
            batch_size=batch_size,
            return_dense=return_dense,
            return_sparse=return_sparse,
            return_colbert_vecs=return_colbert_vecs,
            dtype=dtype,
            colbert_dtype=colbert_dtype,
            on_empty="embed",
        )
        engine = LocalEngine(
            model, options, instruction=instruction, model_options=dict(model_options or {})
        )
        self._columns, self._encoder = options.columns, engine.encoder
        self._windows = WindowReader(
            options.columns,
            [pa.field("id", pa.int64())],
            on_empty="embed",
            window_characters=COLBERT_CHARACTERS if return_colbert_vecs else WINDOW_CHARACTERS,
            split=None,
        )
        self.fields = list(engine.encoder.columns.fields)

    def embed(self, table: pa.Table) -> pa.Table:
        """Return the vectors of a table's texts, a row for each of its rows.

        A row whose text is null, or all of whose texts are, has null in place of vectors.

        Raises:
            InputError: If the table lacks a column, or a text cannot be embedded.
        """
        self._columns.check(table.schema, added=())
        texts = table.select(list(self._columns.text))
        present = np.zeros(len(table), np.bool_)
        for column in texts.columns:
            present |= pc.is_valid(column).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(present)
        if len(rows) < len(table):
            texts = texts.filter(pa.array(present))
        found = [pa.schema(self.fields).empty_table()]
        if len(rows):
            windows = self._read(texts, rows)
            Pipeline(windows, self._encoder, lambda each: found.append(_rows(each))).run()
        vectors = pa.concat_tables(found)
        if len(rows) < len(table):
            places = np.cumsum(present) - 1
            vectors = vectors.take(pa.array(places, mask=~present))
        return vectors

    def _read(self, texts: pa.Table, rows: np.ndarray[Any, Any]) -> Generator[Window, None, None]:
        """Yield the windows of some texts, whose rows in the table are given."""

        def batches() -> Iterator[RowBatch]:
            start = 0
            for batch in texts.to_batches():
                yield RowBatch(rows[start : start + len(batch)], batch)
                start += len(batch)

        end = int(rows[-1]) + 1 if len(rows) else 0
        yield from self._windows.read(0, iter([(0, batches())]), start=0, end=end)


def _rows(prepared: PreparedWindow) -> pa.Table:
    """Return the vectors of a window.

    Raises:
        InputError: If one of its texts has none.
    """
    for reject in prepared.rejects():
        raise InputError(f"row {reject.row} (from 0) of the batch {reject.reason}")
    table = prepared.table()
    return table.drop_columns(["id"])
