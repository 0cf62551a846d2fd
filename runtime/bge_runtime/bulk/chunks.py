"""Placeholder, until the real one replaces this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bge_runtime.encoding import TextTokenizer


class Chunk(NamedTuple):
    """A part of a text."""

    start: int
    end: int


def check_chunking(
    chunk_tokens: int, overlap: int, *, special_tokens: int, max_length: int
) -> None:
    """Check."""


def split_texts(
    tokenizer: TextTokenizer,  # noqa: ARG001
    texts: Sequence[str],
    *,
    chunk_tokens: int,  # noqa: ARG001
    overlap: int,  # noqa: ARG001
) -> list[list[Chunk]]:
    """Return one chunk a text."""
    return [[Chunk(0, len(text))] for text in texts]
