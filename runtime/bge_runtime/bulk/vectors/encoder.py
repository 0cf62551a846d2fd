"""A model as a job uses it: from a window of texts to its columns of vectors."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bge_runtime.bulk.options import EncodeOptions
from bge_runtime.bulk.rows import Reject, Window
from bge_runtime.bulk.vectors.outputs import OutputColumns, Outputs
from bge_runtime.encoding import Batch, BatchCall, PrefixCache, batch_tokens, compute_batch
from bge_runtime.engines import Engine
from bge_runtime.m3 import graph_outputs
from bge_runtime.models import AnyFlagModel, TextKind


class PreparedWindow:
    """A window on its way through the engines.

    Attributes:
        window: The window.
        batches: Its batches.
        call: What is the same for all of them.
        outputs: Receives their outputs.
        tokens: Tokens of its texts.
        truncated: Number of texts that were cut.
        finished: Set once all texts are computed.
    """

    def __init__(self, window: Window, outputs: Outputs) -> None:
        """Start without batches; `begin` adds them."""
        self.window, self.outputs = window, outputs
        self.batches: list[Batch] = []
        self.call: BatchCall
        self.tokens = self.truncated = 0
        self.finished = threading.Event()
        self._rejected: dict[int, str] = {}
        self._lock = threading.Lock()
        self._left = 0

    def begin(self, batches: list[Batch]) -> None:
        """Set the batches that have to be computed."""
        self.batches = batches
        self._left = sum(len(batch.rows) for batch in batches)
        if not self._left:
            self.finished.set()

    def finish(self, texts: int) -> None:
        """Note that some texts are computed; called from engines' threads."""
        with self._lock:
            self._left -= texts
            if not self._left:
                self.batches = []
                self.finished.set()

    def reject(self, text: int, reason: str) -> None:
        """Note that a text has no vector, and why; the reason may begin with "text 3"."""
        with self._lock:
            self._rejected[text] = re.sub(r"^text \d+ ", "", reason)

    def rejects(self) -> list[Reject]:
        """Return the rows of the window that are not embedded, in order."""
        ids = self.window.columns["id"]
        ours = [
            Reject(int(self.window.rows[text]), ids[text].as_py(), reason)
            for text, reason in self._rejected.items()
        ]
        return sorted([*self.window.rejects, *ours], key=lambda reject: reject.row)

    def table(self) -> pa.Table:
        """Return its rows: the columns that are kept, and the vectors."""
        table = self.window.columns
        if len(self._rejected) == len(self.window.texts):
            return None
        for name, column in self.outputs.arrays().items():
            table = table.append_column(name, column)
        if self._rejected:
            left = [row for row in range(len(table)) if row not in self._rejected]
            table = table.take(pa.array(left, pa.int64()))
        return table


class TextEncoder:
    """Tokenizes and computes windows with one model.

    Attributes:
        model: The model.
        engines: Its engines, each as often as it computes batches at once.
        columns: Its columns of vectors.
        instruction_tokens: Most tokens that its instruction takes of a text's length.
        options: How texts become vectors.
    """

    def __init__(self, model: AnyFlagModel, options: EncodeOptions) -> None:
        """Open the engines that the model has not opened yet.

        Raises:
            ValueError: If an option does not fit the model.
        """
        self.model = model
        self.columns = OutputColumns(
            model, options.outputs, dtype=options.dtype, colbert_dtype=options.colbert_dtype
        )
        self._parts = model.parts()
        self.options = options
        kind: TextKind = "query" if options.query else "passage"
        self._plan = self._parts.text_plan(kind=kind, max_length=options.max_length)
        engines = self._parts.engines
        self.engines: Sequence[Engine] = engines.for_bulk(self._parts.devices)
        self._distinct = list(dict.fromkeys(self.engines))
        # Not that of the number of threads, so that the batches are the same on any machine.
        self._max_tokens = min(engine.batches.parallel_tokens for engine in self._distinct)
        self.instruction_tokens = self._count_instruction_tokens(kind)
        self._plan.tokenize(["a"])  # an error if the length has no room for special tokens
        self._prefix_bytes = engines.prefix_cache.stats.capacity_bytes
        wanted = set(options.outputs)
        self._graph_outputs = graph_outputs(
            "dense" in wanted, "sparse" in wanted, "colbert" in wanted
        )

    def prepare(self, window: Window) -> PreparedWindow:
        """Tokenize the texts of a window, and plan its batches."""
        outputs = self.columns.collect(len(window.texts), self._graph_outputs)
        prepared = PreparedWindow(window, outputs)
        cut: list[int] = []
        tokens, numbers = self._tokenize(prepared, cut)
        prepared.truncated = len(cut)
        prepared.tokens = sum(map(len, tokens))
        prepared.call = BatchCall(
            self._graph_outputs,
            lambda text: f"text {text}",
            self._parts.bundle.path,
            outputs.add,
        )
        batches: list[Batch] = []
        if tokens:
            # A cache for this window alone: a longer one would make a difference in the last bits
            # depend on the windows before it.
            prefix = PrefixCache(self._prefix_bytes).share(
                self._distinct, tokens, self._plan.prefix
            )
            planned = batch_tokens(
                tokens,
                self._distinct,
                pad_token_id=self._parts.bundle.manifest.model.pad_token_id,
                max_tokens=self._max_tokens,
                max_rows=self.options.batch_size,
                prefix=prefix,
            )
            batches = [batch._replace(rows=numbers[batch.rows]) for batch in planned]
        prepared.begin(batches)
        return prepared

    def compute(self, engine: Engine, prepared: PreparedWindow, batch: Batch) -> None:
        """Compute a batch.

        Raises:
            NotFiniteError: If an output has NaN or infinity.
            InferenceError: If the engine fails.
        """
        compute_batch(engine, batch, call=prepared.call)

    def _tokenize(
        self, prepared: PreparedWindow, cut: list[int]
    ) -> tuple[list[NDArray[np.int64]], NDArray[np.intp]]:
        """Return the tokens of all texts that have some, and the numbers of these texts."""
        texts = prepared.window.texts
        try:
            tokens = self._plan.tokenize(texts, truncated=cut)
            return tokens, np.arange(len(texts))
        except ValueError:
            # One of them has no tokens, or is not valid Unicode.
            cut.clear()
        found: dict[int, NDArray[np.int64]] = {}
        waiting = [range(len(texts))]
        while waiting:
            some = waiting.pop()
            try:
                tokens = self._plan.tokenize([texts[number] for number in some], truncated=cut)
            except ValueError as error:
                if len(some) == 1:
                    prepared.reject(some[0], str(error))
                else:
                    waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
            else:
                found.update(zip(some, tokens, strict=True))
        return list(found.values()), np.array(list(found), dtype=np.intp)

    def _count_instruction_tokens(self, kind: TextKind) -> int:
        plan = self._parts.text_plan(kind=kind, max_length=self.model.max_length)
        (instructed,) = plan.tokenize(["a"])
        (plain,) = self._parts.tokenizer.encode(["a"], max_length=self.model.max_length)
        taken = len(instructed) - len(plain)
        # One more, since the end of an instruction and a text may become other tokens.
        return taken + 1 if taken else 0
