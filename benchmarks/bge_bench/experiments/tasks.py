"""Tasks that vectors and scores are scored on: retrieval, reranking, similarity of sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bge_bench.datasets import metrics
from bge_bench.datasets.catalogue import CORPUS, DATASETS, QUERIES, check
from bge_bench.datasets.corpus import spread_sample
from bge_bench.datasets.data import load_retrieval, load_sts, qrels_file
from bge_bench.errors import BenchError
from bge_bench.systems.base import System
from bge_runtime.system import file_hash

_DEPTH = 100
"""Passages found for each question: as many as the deepest score looks at."""

Values = dict[str, NDArray[np.float64]]
"""The values of each score, one for each question, whose mean is the score."""


class Task(Protocol):
    """Texts to embed, and how to score their vectors.

    Attributes:
        name: Name of the task.
        counts: Number of its texts, by kind.
        sha256: Hash of each of its files, by the file's name.
    """

    name: str
    counts: dict[str, int]
    sha256: dict[str, str]

    def measure(self, system: System, instruct: Callable[[str], str]) -> Values:
        """Return the scores of a system.

        Args:
            system: The system that embeds.
            instruct: Adds the model's instruction to a question.
        """
        ...


class RetrievalTask:
    """Search all passages for those that answer a question."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read the task; see `load_retrieval`."""
        corpus, queries, qrels = load_retrieval(folder)
        rows = {passage: row for row, passage in enumerate(corpus)}
        # A question without a relevant passage has no score.
        judged = [
            query for query in queries if any(grade > 0 for grade in qrels.get(query, {}).values())
        ]
        self.name = name
        self.counts = {"passages": len(corpus), "questions": len(judged)}
        files = (folder / CORPUS, folder / QUERIES, qrels_file(folder))
        self.sha256 = {file.name: file_hash.file_sha256(file) for file in files}
        self.passages = list(corpus.values())
        self.questions = [queries[query] for query in judged]
        self.grades = [
            {rows[passage]: grade for passage, grade in qrels[query].items()} for query in judged
        ]

    def search(
        self, system: System, instruct: Callable[[str], str], *, depth: int
    ) -> NDArray[np.int64]:
        """Return the passages found for each question; see `bge_bench.datasets.metrics.search`."""
        questions = system.encode([instruct(question) for question in self.questions])
        return metrics.search(questions, system.encode(self.passages), depth=depth)

    def measure(self, system: System, instruct: Callable[[str], str]) -> Values:
        """Return the scores of a search for the passages of each question."""
        found = self.search(system, instruct, depth=_DEPTH)
        return {
            "nDCG@10": metrics.ndcg(found, self.grades, at=10),
            "Recall@100": metrics.recall(found, self.grades, at=100),
            "MRR@10": metrics.reciprocal_rank(found, self.grades, at=10),
        }


class RerankingTask:
    """Put the passages that a search found for each question into a better order."""

    def __init__(
        self,
        task: RetrievalTask,
        system: System,
        instruct: Callable[[str], str],
        *,
        depth: int,
        most: int | None = None,
    ) -> None:
        """Search.

        Args:
            task: The questions and passages.
            system: The embedder that finds passages.
            instruct: Adds the embedder's instruction to a question.
            depth: Passages for each question.
            most: Most questions, evenly spaced over all; None for all.
        """
        found = task.search(system, instruct, depth=depth)
        chosen = spread_sample(range(len(found)), most or len(found))
        self.name = task.name
        self.sha256 = task.sha256
        self.counts = {
            **task.counts,
            "questions": len(chosen),
            "passages for each": found.shape[1],
        }
        self._found = found[chosen]
        self._grades = [task.grades[number] for number in chosen]
        self._pairs = [
            (task.questions[number], task.passages[passage])
            for number in chosen
            for passage in found[number]
        ]
        self.before = self._values(self._found)

    def measure(self, system: System, instruct: Callable[[str], str]) -> Values:  # noqa: ARG002  # a reranker gets the question as it is
        """Return the scores after a reranker has ordered the passages."""
        scores = system.encode(self._pairs).reshape(self._found.shape)
        # Of equal scores the first found stays first.
        order = np.argsort(-scores, axis=1, kind="stable")
        return self._values(np.take_along_axis(self._found, order, axis=1))

    def _values(self, found: NDArray[np.int64]) -> Values:
        return {
            "nDCG@10": metrics.ndcg(found, self._grades, at=10),
            "MRR@10": metrics.reciprocal_rank(found, self._grades, at=10),
        }


class StsTask:
    """Rank pairs of sentences by similarity."""

    def __init__(self, name: str, file: Path) -> None:
        """Read the task; see `load_sts`."""
        self._pairs = load_sts(file)
        self.name = name
        self.counts = {"pairs": len(self._pairs.gold)}
        self.sha256 = {file.name: file_hash.file_sha256(file)}

    def measure(self, system: System, instruct: Callable[[str], str]) -> Values:  # noqa: ARG002  # neither sentence is a question
        """Return the correlation of cosines with the scores that people gave."""
        first, second = (
            system.encode(sentences).astype(np.float64)
            for sentences in (self._pairs.first, self._pairs.second)
        )
        cosines = np.einsum("nd,nd->n", first, second)
        return {
            "Spearman": np.array([metrics.rank_correlation(cosines, self._pairs.gold)]),
            "Pearson": np.array([metrics.linear_correlation(cosines, self._pairs.gold)]),
        }


def open_task(name: str, folder: Path) -> Task:
    """Return a task read from its files.

    Args:
        name: A key of `bge_bench.datasets.catalogue.DATASETS`, whose files are verified; or the
            path of a folder in BEIR's format, or of a CSV file of pairs with their scores.
        folder: Data folder of the published datasets.

    Raises:
        BenchError: If it is missing or has another format.
    """
    dataset = DATASETS.get(name)
    if dataset is not None:
        check(dataset, folder)
        path = folder / dataset.path
    else:
        path, name = Path(name), Path(name).name
    if path.is_dir():
        return RetrievalTask(name, path)
    if path.is_file():
        return StsTask(name, path)
    raise BenchError(
        f"there is no task {name!r}: it is neither a path nor one of {', '.join(DATASETS)}"
    )
