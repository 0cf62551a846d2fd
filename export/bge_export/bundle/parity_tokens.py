"""Tokenize parity texts and pairs as the runtime does, and compare with the checkpoint's way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_export.parity_pairs import PARITY_PAIRS
from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS
from bge_runtime.bundle import SECOND_TEXT, TOKENIZER_FILE
from bge_runtime.encoding import PairTokenizer, TextTokenizer
from bge_runtime.errors import ExportError

if TYPE_CHECKING:
    from bge_export.checkpoint.tokenizer import CheckpointTokenizer


def tokenize_parity_texts(
    draft: Path, tokenizer: CheckpointTokenizer, *, max_length: int
) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """Tokenize the parity texts with the runtime's tokenizer.

    Args:
        draft: The bundle, with its ``tokenizer.json``.
        tokenizer: The checkpoint's tokenizer.
        max_length: Most tokens of a text.

    Returns:
        The texts and the tokens of each. Texts without tokens are left out, and so are texts with
        the same tokens as another, of which a vocabulary of few scripts makes many.

    Raises:
        ExportError: If the runtime's token ids are not the checkpoint's, or all texts have the
            same ones.
    """
    runtime = TextTokenizer(draft / TOKENIZER_FILE)
    given = (*PARITY_TEXTS, *TOKENIZER_TEXTS)
    expected = dict(zip(given, tokenizer.encode(given, max_length=max_length), strict=True))
    texts = [text for text in given if expected[text]]
    found = dict(zip(texts, runtime.encode(texts, max_length=max_length), strict=True))
    for text, ids in found.items():
        _require_same(text, ids.tolist(), expected[text])
    kept: dict[bytes, str] = {}
    for text in PARITY_TEXTS:
        if text in found:
            kept.setdefault(found[text].tobytes(), text)
    _require_several(len(kept), len(PARITY_TEXTS), "texts")
    return tuple(kept.values()), [found[text] for text in kept.values()]


def tokenize_parity_pairs(
    draft: Path, tokenizer: CheckpointTokenizer, *, max_length: int, token_types: bool
) -> tuple[tuple[tuple[str, str], ...], list[NDArray[np.int64]]]:
    """Tokenize the parity pairs with the runtime's tokenizer.

    Args:
        draft: The bundle, with its ``tokenizer.json``.
        tokenizer: The checkpoint's tokenizer.
        max_length: Most tokens of a pair.
        token_types: Whether the model reads token types.

    Returns:
        The pairs and the tokens of each, with `bge_runtime.bundle.SECOND_TEXT` if the model reads
        token types. Pairs with the same tokens as another are left out.

    Raises:
        ExportError: If the runtime's token ids or types are not the checkpoint's, or all pairs
            have the same ones.
    """
    runtime = PairTokenizer(TextTokenizer(draft / TOKENIZER_FILE), token_types=token_types)
    queries, passages = zip(*PARITY_PAIRS, strict=True)
    found = runtime.encode(
        queries, passages, max_length=max_length, query_max_length=max_length * 3 // 4
    )
    kept: dict[bytes, int] = {}
    expected = tokenizer.encode_pairs(PARITY_PAIRS, max_length=max_length)
    for number, (row, (ids, types)) in enumerate(zip(found, expected, strict=True)):
        theirs = np.array(ids) + np.array(types) * (SECOND_TEXT if token_types else 0)
        _require_same(" / ".join(PARITY_PAIRS[number]), row.tolist(), theirs.tolist())
        kept.setdefault(row.tobytes(), number)
    _require_several(len(kept), len(PARITY_PAIRS), "pairs")
    numbers = kept.values()
    return tuple(PARITY_PAIRS[number] for number in numbers), [found[number] for number in numbers]


def _require_same(text: str, ours: list[int], theirs: list[int]) -> None:
    if ours != theirs:
        raise ExportError(
            f"the runtime tokenizes {text[:40]!r} otherwise than the checkpoint's tokenizer does "
            f"({ours[:12]} … instead of {theirs[:12]} …). Nothing was written; please report this "
            "model"
        )


def _require_several(kept: int, given: int, what: str) -> None:
    if kept < 2:
        raise ExportError(
            f"the tokenizer gives all {given} parity {what} the same tokens, so the graphs cannot "
            "be checked; it knows none of their scripts"
        )
