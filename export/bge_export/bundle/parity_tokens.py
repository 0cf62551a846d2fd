"""Tokenize the parity texts as the runtime does, and compare with the checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS
from bge_runtime.bundle import TOKENIZER_FILE
from bge_runtime.encoding import TextTokenizer
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
        if ids.tolist() != expected[text]:
            raise ExportError(
                f"the runtime tokenizes {text[:40]!r} otherwise than the checkpoint's tokenizer "
                f"does ({ids.tolist()[:12]} … instead of {expected[text][:12]} …). Nothing was "
                "written; please report this model"
            )
    kept: dict[bytes, str] = {}
    for text in PARITY_TEXTS:
        if text in found:
            kept.setdefault(found[text].tobytes(), text)
    if len(kept) < 2:
        raise ExportError(
            f"the tokenizer gives all {len(PARITY_TEXTS)} parity texts the same tokens, so the "
            "graphs cannot be checked; it knows none of their scripts"
        )
    return tuple(kept.values()), [found[text] for text in kept.values()]
