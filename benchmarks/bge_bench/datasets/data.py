"""Read texts with a gold standard: retrieval in BEIR's form, and scored pairs of sentences."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_bench.datasets.catalogue import CORPUS, DATASETS, QRELS, QUERIES, check, data_folder
from bge_bench.errors import BenchError

_BEIR_QRELS = Path("qrels", "test.tsv")
"""Where BEIR's own archives have the grades."""


class Retrieval(NamedTuple):
    """Questions, passages, and which answer which.

    Attributes:
        corpus: Text of each passage by its id, in the order of the file.
        queries: Text of each question by its id, in the order of the file.
        qrels: How relevant a passage is to a question: question's id, passage's id, grade.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class SentencePairs(NamedTuple):
    """Pairs of sentences that people compared.

    Attributes:
        first: One of each pair.
        second: The other.
        gold: How alike they are, the more the higher. Shape: ``(len(first),)``.
    """

    first: list[str]
    second: list[str]
    gold: NDArray[np.float64]


def load_passages(name: str, folder: Path | None = None) -> list[str]:
    """Return the passages of a retrieval dataset, or the sentences of pairs, as in the file.

    Args:
        name: One of `DATASETS`.
        folder: Data folder that holds it; None for `data_folder`.

    Raises:
        BenchError: If there is no such dataset, or it is not there as it should be.
    """
    dataset = DATASETS.get(name)
    if dataset is not None and dataset.kind == "sts":
        folder = folder or data_folder()
        check(dataset, folder)
        pairs = load_sts(folder / dataset.path)
        return [
            sentence for pair in zip(pairs.first, pairs.second, strict=True) for sentence in pair
        ]
    return list(_load(name, folder).corpus.values())


def load_questions(name: str, folder: Path | None = None) -> list[str]:
    """Return the questions of a retrieval dataset; see `load_passages`."""
    return list(_load(name, folder).queries.values())


def _load(name: str, folder: Path | None) -> Retrieval:
    dataset = DATASETS.get(name)
    if dataset is None or dataset.kind != "retrieval":
        known = (known.name for known in DATASETS.values() if known.kind == "retrieval")
        raise BenchError(f"no passages are known as {name!r}; there are {', '.join(known)}")
    folder = folder or data_folder()
    check(dataset, folder)
    return load_retrieval(folder / dataset.path)


def load_retrieval(folder: Path) -> Retrieval:
    """Read a retrieval task in BEIR's form.

    That is ``corpus.jsonl`` and ``queries.jsonl`` with an ``_id`` and a ``text`` a line, and a
    ``title`` that is put before the text if there is one; and the tab-separated
    ``qrels.tsv``, or ``qrels/test.tsv``, of question, passage and grade.

    Raises:
        BenchError: If a file is missing or of another form, an id comes twice or leads
            nowhere, or no question has a relevant passage.
    """
    corpus = _read_texts(folder / CORPUS)
    queries = _read_texts(folder / QUERIES)
    path = qrels_file(folder)
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        if number == 1 and line.startswith("query-id"):
            continue
        try:
            query, passage, grade = line.split("\t")
            relevance = int(grade)
        except ValueError:
            raise BenchError(
                f"line {number} of {path} is not a question's id, a passage's id and a grade, "
                f"with tabs between: {line[:80]!r}"
            ) from None
        if query not in queries or passage not in corpus:
            raise BenchError(
                f"line {number} of {path} names {query!r} and {passage!r}, which are not both in "
                f"{QUERIES} and {CORPUS} beside it"
            )
        qrels.setdefault(query, {})[passage] = relevance
    if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
        raise BenchError(f"{path} has no question with a relevant passage, so nothing is measured")
    return Retrieval(corpus, queries, qrels)


def qrels_file(folder: Path) -> Path:
    """Return the file of a retrieval task that holds the grades."""
    ours = folder / QRELS
    return ours if ours.is_file() or not (folder / _BEIR_QRELS).is_file() else folder / _BEIR_QRELS


def load_sts(path: Path) -> SentencePairs:
    """Read pairs of sentences from a CSV file without a header: two sentences and a score.

    Raises:
        BenchError: If it is of another form, or holds fewer than two pairs.
    """
    first, second, gold = [], [], []
    rows = csv.reader(io.StringIO(_read(path), newline=""))
    for number, row in enumerate(rows, start=1):
        try:
            one, other, score = row
            gold.append(float(score))
        except ValueError:
            raise BenchError(
                f"row {number} of {path} is not two sentences and a score: {str(row)[:80]}"
            ) from None
        first.append(one)
        second.append(other)
    if len(set(gold)) < 2:
        raise BenchError(f"{path} holds {len(gold)} pairs, and ranks need two different scores")
    return SentencePairs(first, second, np.array(gold))


def _read_texts(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            row: dict[str, Any] = json.loads(line)
            name, text, title = row["_id"], row["text"], row.get("title") or ""
        except (ValueError, LookupError, TypeError):
            raise BenchError(
                f"line {number} of {path} is not a JSON object with _id and text: {line[:80]!r}"
            ) from None
        if name in texts:
            raise BenchError(f"line {number} of {path} has the _id {name!r} for a second time")
        texts[name] = f"{title} {text}" if title else text
    return texts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number the lines that are not empty; only a newline ends one."""
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path} as UTF-8 text: {error}") from error
