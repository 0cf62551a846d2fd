"""The embedders that are compared, behind one small interface.

Imported by the worker inside its timed start, so nothing heavy at the top: each side
pays for the imports that its users pay for, and for no others.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OURS = "bge-runtime"
PYTORCH = ("flagembedding", "transformers")
"""Baselines that PyTorch computes in fp32, from the checkpoint: references for vectors."""
BASELINES = PYTORCH
"""What a bundle can be compared with."""


@dataclass(frozen=True, kw_only=True)
class SideSpec:
    """How to open a side.

    Attributes:
        side: `OURS` or one of `BASELINES`.
        model: Folder of the bundle for ours, of the checkpoint for the others.
        pooling: ``"cls"`` or ``"mean"``.
        max_length: Most tokens of a text, special tokens included.
        batch_size: Most texts in a batch.
        threads: Threads to compute with; None leaves the default.
        precision: Arithmetic of ours; a baseline always computes in fp32.
    """

    side: str
    model: str
    pooling: str
    max_length: int
    batch_size: int
    threads: int | None = None
    precision: str = "fp32"


class Side(Protocol):
    """An opened embedder.

    Attributes:
        name: Package and version.
        precision: Arithmetic in force; a key of `bge_runtime.parity.TOLERANCES`.
        in_force: What executes it, in words.
    """

    name: str
    precision: str
    in_force: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Returns:
            Unit-length vectors in input order. Shape: ``(len(texts), dim)``.
        """
        ...


def open_side(spec: SideSpec) -> Side:
    """Open a side in this process."""
    return _SIDES[spec.side](spec)


class _Ours:
    def __init__(self, spec: SideSpec) -> None:
        from bge_runtime import FlagModel, __version__

        with quiet():
            self._model = FlagModel(
                spec.model,
                precision=spec.precision,
                devices="cpu",
                pooling_method=spec.pooling,
                batch_size=spec.batch_size,
                passage_max_length=spec.max_length,
                threads=spec.threads,
            )
        self.name = f"bge-runtime {__version__}"
        self.precision = self._model.engine.info.precision
        self.in_force = str(self._model.engine.info)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._model.encode(texts, show_progress_bar=False)


class _FlagEmbedding:
    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        with quiet():
            from FlagEmbedding import FlagModel

            in_force = _torch_in_force(spec.threads)
            self._model: Any = FlagModel(
                spec.model,
                use_fp16=False,
                devices="cpu",
                pooling_method=spec.pooling,
                batch_size=spec.batch_size,
                passage_max_length=spec.max_length,
            )
        self.name = f"FlagEmbedding {importlib.metadata.version('FlagEmbedding')}"
        self.in_force = f"{in_force}, batches of {spec.batch_size}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with quiet():
            vectors: NDArray[np.float32] = self._model.encode(list(texts))
        return vectors


class _Transformers:
    """A plain forward pass of ``AutoModel``, over texts sorted by length.

    With a batch size of 1 nothing is padded: that is the reference for parity.
    """

    precision = "fp32"

    def __init__(self, spec: SideSpec) -> None:
        with quiet():
            import torch
            from transformers import AutoModel, AutoTokenizer

            in_force = _torch_in_force(spec.threads)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(spec.model)
            model = AutoModel.from_pretrained(spec.model, dtype=torch.float32)
        self._model: Any = model.eval()
        self._spec = spec
        self.name = f"transformers {importlib.metadata.version('transformers')}"
        padding = "one text at a time" if spec.batch_size == 1 else f"batches of {spec.batch_size}"
        self.in_force = f"{in_force}, {padding}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        options = {"truncation": True, "max_length": self._spec.max_length}
        with quiet(), torch.inference_mode():
            lengths = [len(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]
            order = sorted(range(len(texts)), key=lambda index: -lengths[index])
            rows: dict[int, torch.Tensor] = {}
            for start in range(0, len(order), self._spec.batch_size):
                batch = order[start : start + self._spec.batch_size]
                encoded = self._tokenizer(
                    [texts[index] for index in batch],
                    padding=True,
                    return_tensors="pt",
                    **options,
                )
                hidden = self._model(**encoded).last_hidden_state
                pooled = _pool(hidden, encoded["attention_mask"], self._spec.pooling)
                rows.update(zip(batch, torch.nn.functional.normalize(pooled, dim=-1), strict=True))
            vectors: NDArray[np.float32] = torch.stack(
                [rows[index] for index in range(len(texts))]
            ).numpy()
        return vectors


_SIDES: dict[str, Callable[[SideSpec], Side]] = {
    OURS: _Ours,
    "flagembedding": _FlagEmbedding,
    "transformers": _Transformers,
}


def _pool(hidden: Any, mask: Any, pooling: str) -> Any:
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _torch_in_force(threads: int | None) -> str:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return f"torch {torch.__version__} on cpu, fp32, {torch.get_num_threads()} threads"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep other packages' progress bars, advice and warnings off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
