"""Pairs of texts, and XQuAD's where they are beside the checkout."""

from __future__ import annotations

import json

from bge_export.parity_pairs import PARITY_PAIRS
from tests.helpers.bundles import SHARED

LANGUAGES = ("en", "de", "zh", "ru", "ar", "hi")


def xquad(language: str, kind: str, count: int) -> list[str]:
    """Return texts of XQuAD: ``kind`` is ``"queries"`` or ``"corpus"``; none if it is not here."""
    path = SHARED / "text" / "xquad" / language / f"{kind}.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def rankings(passages: int = 100) -> dict[str, tuple[str, list[str]]]:
    """Return a query and passages by language: XQuAD's, or else those of the parity gate."""
    found = {
        language: (queries[0], xquad(language, "corpus", passages))
        for language in LANGUAGES
        if (queries := xquad(language, "queries", 1))
    }
    own = [passage for _, passage in PARITY_PAIRS]
    return found or {query[:12]: (query, own) for query, _ in PARITY_PAIRS[:6]}
