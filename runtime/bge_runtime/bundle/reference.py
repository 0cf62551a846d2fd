"""What PyTorch computed for some texts or pairs at the export, to measure parity with."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle.folders import explain_renewal
from bge_runtime.bundle.graph_io import HEAD_OUTPUTS
from bge_runtime.errors import BundleError

COLBERT_TOKENS = 64
"""Longest text, in tokens, whose ColBERT vectors are kept as a reference."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Tokenised texts with PyTorch's fp32 vectors, to measure parity with.

    Attributes:
        texts: The texts themselves.
        token_ids: Their tokens, special tokens included. One int64 array per text.
        vectors: PyTorch's pooled vectors, not normalised. Shape: ``(texts, dim)``.
        token_weights: For M3 models, the weights of the tokens of all texts, concatenated.
            Shape: ``(tokens,)``.
        colbert_vecs: For M3 models, the vectors of all tokens except each text's first,
            concatenated. Only texts of at most `COLBERT_TOKENS` tokens, since all would take tens
            of megabytes. Shape: ``(tokens, colbert_dim)``.
    """

    texts: tuple[str, ...]
    token_ids: tuple[NDArray[np.int64], ...]
    vectors: NDArray[np.float32]
    token_weights: NDArray[np.float32] | None = None
    colbert_vecs: NDArray[np.float32] | None = None

    def save(self, path: Path) -> None:
        """Write ``parity.npz``.

        Raises:
            OSError: If it cannot be written.
        """
        np.savez(
            path,
            texts=_join(self.texts),
            tokens=np.concatenate(self.token_ids).astype(np.int32),
            lengths=np.array([len(ids) for ids in self.token_ids], dtype=np.int32),
            vectors=self.vectors.astype(np.float32),
            **{name: array for name in HEAD_OUTPUTS if (array := getattr(self, name)) is not None},
        )


@dataclass(frozen=True, kw_only=True)
class PairReference:
    """Tokenised pairs with PyTorch's fp32 scores, to measure a reranker's parity with.

    Attributes:
        queries: The query of each pair.
        passages: The passage of each pair.
        token_ids: Their tokens, special tokens included, as
            `bge_runtime.encoding.PairTokenizer` returns them. One int64 array per pair.
        logits: PyTorch's logits. Shape: ``(pairs,)``.
        max_length: Tokens to which the pairs were cut.
    """

    queries: tuple[str, ...]
    passages: tuple[str, ...]
    token_ids: tuple[NDArray[np.int64], ...]
    logits: NDArray[np.float32]
    max_length: int

    def save(self, path: Path) -> None:
        """Write ``parity.npz``.

        Raises:
            OSError: If it cannot be written.
        """
        np.savez(
            path,
            queries=_join(self.queries),
            passages=_join(self.passages),
            # Ids of a second text may exceed 32 bits.
            tokens=np.concatenate(self.token_ids),
            lengths=np.array([len(ids) for ids in self.token_ids], dtype=np.int32),
            logits=self.logits.astype(np.float32),
            max_length=np.array(self.max_length),
        )


def load_reference(path: Path) -> Reference | PairReference:
    """Read ``parity.npz``.

    Raises:
        BundleError: If it cannot be read.
    """
    try:
        # NumPy does not close a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return _read_pairs(data) if "logits" in data else _read_texts(data)
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"cannot read {path}: {error}; {explain_renewal(path.parent)}") from error


def _read_texts(data: Mapping[str, NDArray[Any]]) -> Reference:
    return Reference(
        texts=_split(data["texts"]),
        token_ids=_read_tokens(data),
        vectors=data["vectors"],
        **{name: data[name] for name in HEAD_OUTPUTS if name in data},
    )


def _read_pairs(data: Mapping[str, NDArray[Any]]) -> PairReference:
    return PairReference(
        queries=_split(data["queries"]),
        passages=_split(data["passages"]),
        token_ids=_read_tokens(data),
        logits=data["logits"],
        max_length=int(data["max_length"]),
    )


def _read_tokens(data: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int64], ...]:
    ends = np.cumsum(data["lengths"])[:-1]
    return tuple(np.split(data["tokens"].astype(np.int64), ends))


def _join(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\0".join(texts).encode(), dtype=np.uint8)


def _split(content: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(content.tobytes().decode().split("\0"))
