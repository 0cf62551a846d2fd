"""The texts that a command names, and pairs of them, as a search hands them to a reranker."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from bge_bench.datasets.catalogue import DATASETS
from bge_bench.datasets.corpus import paragraphs, read_texts, short_texts, spread_sample
from bge_bench.datasets.data import load_passages, load_questions
from bge_bench.errors import BenchError

_MIXED = 1000
_FULL, _FULL_WORDS = "full", 700
_QUESTIONS = "-questions"
_QUERY_WORDS = 9
_CALIBRATING = 300


def named_texts(named: Sequence[str], folder: Path | None, count: int | None = None) -> list[str]:
    """Return the texts that ``--texts`` names, repeated up to ``count``.

    Args:
        named: Values of the option.
        folder: Data folder of published texts; None for the default.
        count: Number of texts to return; None for those there are.
    """
    texts: list[str] = []
    for name in named:
        if name == "mixed":
            texts += paragraphs(_MIXED)
        elif name == _FULL:
            texts += short_texts(_MIXED, words=_FULL_WORDS)
        elif name.removesuffix(_QUESTIONS) in DATASETS:
            read = load_questions if name.endswith(_QUESTIONS) else load_passages
            texts += read(name.removesuffix(_QUESTIONS), folder)
        else:
            texts += read_texts(Path(name))
    return texts if count is None else numbered(texts, count)


def calibration_texts(folder: Path | None) -> tuple[str, list[str]]:
    """Return texts to calibrate int8 on: of XQuAD in English, or generated where it is not.

    Args:
        folder: Data folder of published texts; None for the default.

    Returns:
        What they are, and the texts: XQuAD's 240 paragraphs first, then questions.
    """
    source = "xquad-en"
    try:
        texts = load_passages(source, folder) + load_questions(source, folder)
    except BenchError:
        source, texts = "generated paragraphs", paragraphs(_CALIBRATING)
    return source, texts[:_CALIBRATING]


def numbered(texts: Sequence[str], count: int) -> list[str]:
    """Return ``count`` texts, repeated if necessary, each with its own number before it."""
    return [f"{number} {texts[number % len(texts)]}" for number in range(count)]


def named_pairs(
    named: Sequence[str], folder: Path | None, *, queries: int, passages: int
) -> list[tuple[str, str]]:
    """Return pairs of each query with passages of its own, in no particular order.

    Args:
        named: Names as for `named_texts`. Questions are queries, all others are passages. The
            queries of a dataset's passages are its questions; of other texts they are generated.
        folder: Data folder of published texts; None for the default.
        queries: Number of queries.
        passages: Number of passages of each.

    Raises:
        BenchError: If there are fewer queries or passages.
    """
    of_passages = [name for name in named if not name.endswith(_QUESTIONS)]
    of_queries = [name for name in named if name.endswith(_QUESTIONS)] or [
        f"{name}{_QUESTIONS}"
        for name in of_passages
        if name in DATASETS and DATASETS[name].kind == "retrieval"
    ]
    asked = named_texts(of_queries, folder) or short_texts(queries, words=_QUERY_WORDS)
    texts = named_texts(of_passages, folder)
    if len(asked) < queries or len(texts) < passages:
        raise BenchError(
            f"{', '.join(named)} has {len(asked)} queries and {len(texts)} passages, and "
            f"{queries} queries with {passages} passages each were asked for"
        )
    return [
        (query, passage)
        for number, query in enumerate(spread_sample(asked, queries))
        # Of all lengths and unsorted, as a search returns them.
        for passage in random.Random(number).sample(texts, passages)  # noqa: S311  # no secret
    ]
