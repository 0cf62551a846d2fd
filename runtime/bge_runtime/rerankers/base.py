"""What all rerankers share: scores of pairs, and passages sorted by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_runtime.bundle import LOGITS
from bge_runtime.encoding import (
    Batch,
    EncodingPlan,
    PairEncoder,
    TokenizationPlan,
    as_pairs,
    as_text,
    as_text_list,
    check_positive,
    check_unicode,
    encode,
    progress_bar,
)
from bge_runtime.models import OpenedModel, OpenOptions, check_format, join_instruction
from bge_runtime.rerankers.parts import RerankerParts

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """A passage and its score.

    Attributes:
        index: Its position in the list that was ranked.
        score: Its score.
        passage: Its text.
    """

    index: int
    score: float
    passage: str


@dataclass(frozen=True, kw_only=True)
class RerankerDefaults:
    """What a call does unless it says otherwise; the names are FlagEmbedding's.

    Each becomes an attribute of the reranker, which may be changed at any time.
    """

    query_instruction_for_rerank: str | None
    query_instruction_format: str
    passage_instruction_for_rerank: str | None
    passage_instruction_format: str
    batch_size: int
    query_max_length: int | None
    max_length: int
    normalize: bool


@dataclass(frozen=True, kw_only=True)
class Call:
    """The options of a call, checked."""

    pair_encoder: PairEncoder
    batch_size: int
    query_max_length: int
    max_length: int
    normalize: bool
    show_progress_bar: bool | None
    devices: Sequence[str]

    @property
    def lengths(self) -> dict[str, int]:
        """The two lengths, as the tokenizer takes them."""
        return {"max_length": self.max_length, "query_max_length": self.query_max_length}


class BaseReranker(OpenedModel):
    """The abstract base of the rerankers.

    Attributes:
        max_length: Tokens at which a pair is cut by default; `model_max_length` is what the model
            can read.
    """

    OWN_ATTRIBUTES: ClassVar[tuple[str, ...]] = ("model_max_length", "name", "query_instruction")

    def __init__(
        self, model_name_or_path: str, options: OpenOptions, defaults: RerankerDefaults
    ) -> None:
        """Find a reranker's bundle, exporting it if need be, and open it.

        Args:
            model_name_or_path: As in `bge_runtime.sources.find_bundle`.
            options: How to open it.
            defaults: What calls do by default.

        Raises:
            ValueError: If an instruction's format has no place for the text.
            BgeError: As `bge_runtime.FlagModel`.
        """
        super().__init__(model_name_or_path, options)
        self.query_instruction_for_rerank = defaults.query_instruction_for_rerank
        self.query_instruction_format = defaults.query_instruction_format
        self.passage_instruction_for_rerank = defaults.passage_instruction_for_rerank
        self.passage_instruction_format = defaults.passage_instruction_format
        self.batch_size = defaults.batch_size
        self.query_max_length = defaults.query_max_length
        self.max_length = defaults.max_length
        self.normalize = defaults.normalize
        self._check_formats()

    @property
    def model_max_length(self) -> int:
        """Maximum tokens that the model can read, special tokens and both texts included."""
        return self.bundle.manifest.model.max_length

    @property
    def query_instruction(self) -> str | None:
        """What is put before queries; of a decoder also what its own prompt has there."""
        return self.query_instruction_for_rerank

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float]:
        """Score pairs of a query and a passage.

        Args:
            sentence_pairs: A pair, or a list of pairs.
            batch_size: Maximum pairs in a batch; None for the reranker's. Batches are filled by
                tokens, and a score does not depend on what is in its batch, but for rounding.
            query_max_length: Tokens at which a query is cut; None for the reranker's, or three
                quarters of ``max_length``.
            max_length: Tokens at which a pair is cut, at the end of the passage; None for the
                reranker's.
            normalize: Return the sigmoid of each score, between 0 and 1; None for the reranker's.
            show_progress_bar: None shows one for ``batch_size`` pairs or more, on a terminal.

        Returns:
            One score for each pair, in input order; also for a single pair a list, as
            FlagEmbedding. Scores are logits unless ``normalize``.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If something is not a pair, a number is out of range, or a text is not
                valid Unicode.
            NotFiniteError: If a score is NaN or infinity.
            InferenceError: If the engine fails.
        """
        call = self._call(
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            normalize=normalize,
            show_progress_bar=show_progress_bar,
        )
        return self._score_pairs(sentence_pairs, call)

    def rerank(
        self,
        query: str,
        passages: Sequence[str],
        top_k: int | None = None,
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[RankedPassage]:
        """Sort passages by how well they fit a query.

        Args:
            query: The query.
            passages: The passages.
            top_k: How many to return; None for all.
            batch_size: As in `compute_score`.
            query_max_length: As in `compute_score`.
            max_length: As in `compute_score`.
            normalize: As in `compute_score`.
            show_progress_bar: As in `compute_score`.

        Returns:
            Positions, scores and texts, the best one first; where scores are equal, in the order
            of ``passages``.

        Raises:
            TypeError: If a text is not a string.
            ValueError: If a number is out of range, or a text is not valid Unicode.
            NotFiniteError: If a score is NaN or infinity.
            InferenceError: If the engine fails.
        """
        query = as_text(query, name="query")
        check_unicode(query, "query")
        listed = as_text_list(passages, name="passages")
        for index, passage in enumerate(listed):
            check_unicode(passage, f"passages[{index}]")
        if top_k is not None:
            check_positive("top_k", top_k)
        call = self._call(
            batch_size=batch_size,
            query_max_length=query_max_length,
            max_length=max_length,
            normalize=normalize,
            show_progress_bar=show_progress_bar,
        )
        scores = self._scores([query] * len(listed), listed, call, name="passages[{}]")
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [RankedPassage(int(row), float(scores[row]), listed[row]) for row in order]

    def encode_multi_process(
        self,
        sentence_pairs: Sequence[Sequence[str]],
        pool: dict[str, Any],  # noqa: ARG002
        **kwargs: Any,
    ) -> NDArray[np.float64]:
        """Score a list on all devices; ``pool`` is what `start_multi_process_pool` returned."""
        return np.array(self.compute_score(sentence_pairs, **kwargs))

    def get_detailed_inputs(
        self, sentence_pairs: Sequence[Sequence[str]] | Sequence[str]
    ) -> list[list[str]]:
        """Return pairs with the reranker's instructions before the texts, as FlagEmbedding does."""
        pairs, _ = as_pairs(sentence_pairs)
        queries = self._add(
            self.query_instruction_for_rerank,
            self.query_instruction_format,
            [query for query, _ in pairs],
        )
        passages = self._add(
            self.passage_instruction_for_rerank,
            self.passage_instruction_format,
            [passage for _, passage in pairs],
        )
        return [list(pair) for pair in zip(queries, passages, strict=True)]

    def pair_plan(
        self,
        query: str,
        *,
        max_length: int | None = None,
        query_max_length: int | None = None,
        reuse_query: bool = True,
    ) -> TokenizationPlan:
        """Return how passages become the tokens of pairs with a query.

        Args:
            query: The query.
            max_length: As in `compute_score`.
            query_max_length: As in `compute_score`.
            reuse_query: Whether a decoder is to compute the query once, for several passages.

        Raises:
            ValueError: If a number is out of range, or the query is not valid Unicode.
        """
        check_unicode(query, "query")
        call = self._call(query_max_length=query_max_length, max_length=max_length)
        queries = self._add_query_instruction([query])
        return self._tokenization(queries, call, reuse_query=reuse_query)

    def parts(self) -> RerankerParts:
        """Return what a server needs to batch the pairs of many requests itself."""
        return RerankerParts(
            bundle=self.bundle,
            tokenizer=self.tokenizer,
            engines=self._engines,
            devices=self.target_devices,
            pair_plan=self.pair_plan,
        )

    def _pair_encoder(self, prompt: str | None) -> PairEncoder:
        """Return what makes the tokens of pairs; ``prompt`` replaces the question of a decoder."""
        raise NotImplementedError

    def _add_query_instruction(self, queries: list[str]) -> list[str]:
        """Return queries as `_pair_encoder` takes them."""
        return self._add(self.query_instruction_for_rerank, self.query_instruction_format, queries)

    def _add_passage_instruction(self, passages: Sequence[str]) -> list[str]:
        """Return passages as `_pair_encoder` takes them."""
        return self._add(
            self.passage_instruction_for_rerank, self.passage_instruction_format, passages
        )

    def _check_formats(self) -> None:
        """Check that instructions leave the texts their places.

        Raises:
            ValueError: If one does not.
        """
        for template, text in (
            (self.query_instruction_format, "query"),
            (self.passage_instruction_format, "passage"),
        ):
            check_format(template, ("instruction", text))

    def _call(
        self,
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        show_progress_bar: bool | None = None,
        devices: Sequence[str] | None = None,
        prompt: str | None = None,
    ) -> Call:
        """Return the options of a call, checked, with the reranker's own where it has none."""
        self._check_formats()
        batch_size = self.batch_size if batch_size is None else batch_size
        check_positive("batch_size", batch_size)
        length = self._readable_length(self.max_length if max_length is None else max_length)
        query_length = self.query_max_length if query_max_length is None else query_max_length
        if query_length is None:
            query_length = max(1, length * 3 // 4)
        check_positive("query_max_length", query_length)
        return Call(
            pair_encoder=self._pair_encoder(prompt),
            batch_size=batch_size,
            query_max_length=query_length,
            max_length=length,
            normalize=self.normalize if normalize is None else normalize,
            show_progress_bar=show_progress_bar,
            devices=self.target_devices if devices is None else devices,
        )

    def _score_pairs(
        self, sentence_pairs: Sequence[Sequence[str]] | Sequence[str], call: Call
    ) -> list[float]:
        pairs, _ = as_pairs(sentence_pairs)
        queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
        scores = self._scores(queries, passages, call, name="sentence_pairs[{}]")
        return scores.tolist()  # type: ignore[no-any-return]

    def _scores(
        self, queries: list[str], passages: list[str], call: Call, *, name: str
    ) -> NDArray[np.float64]:
        """Return the scores of checked pairs, each with a ``name`` for errors."""
        scores = np.empty(len(passages))
        queries = self._add_query_instruction(queries)
        bar = progress_bar(
            len(passages),
            shown=call.show_progress_bar,
            batch_size=call.batch_size,
            activity="scoring",
            unit="pair",
        )
        with bar as progress:
            for rows in self._groups(queries):
                plan = EncodingPlan(
                    # The query of one passage only is not worth a run of its own.
                    tokenization=self._tokenization(
                        [queries[row] for row in rows], call, reuse_query=len(rows) > 1
                    ),
                    outputs=[LOGITS],
                    batch_size=call.batch_size,
                    # One pair is not worth sharing.
                    devices=call.devices[:1] if len(rows) == 1 else call.devices,
                    show_progress_bar=False,
                    describe_text=partial(_name_row, name, rows),
                )
                group = [passages[row] for row in rows]
                encode(group, plan, self._engines, partial(_keep_scores, scores, rows, progress))
        return sigmoid(scores) if call.normalize else scores

    def _groups(self, queries: list[str]) -> list[NDArray[np.intp]]:
        """Return the positions of the pairs that are computed together."""
        return [np.arange(len(queries))] if queries else []

    def _tokenization(
        self, queries: list[str], call: Call, *, reuse_query: bool
    ) -> TokenizationPlan:
        """Return how passages become the tokens of pairs.

        Args:
            queries: The query of each passage, with its instruction; one for all passages if there
                is one only.
            call: The call.
            reuse_query: Whether a query that all passages have is computed once.
        """
        encoder, lengths = call.pair_encoder, call.lengths
        same = len(set(queries)) == 1

        def tokenize(
            texts: Sequence[str], *, first: int = 0, truncated: list[int] | None = None
        ) -> list[NDArray[np.int64]]:
            count = len(texts)
            return encoder.encode(
                queries[:1] * count if same else queries[first : first + count],
                self._add_passage_instruction(texts),
                first=first,
                truncated=truncated,
                **lengths,
            )

        shared = queries[0] if same and reuse_query else None
        start = encoder.encode_start(shared, **lengths)
        return TokenizationPlan(tokenize, start if len(start) else None)

    @staticmethod
    def _add(instruction: str | None, instruction_format: str, texts: Sequence[str]) -> list[str]:
        if instruction is None:
            return list(texts)
        return [join_instruction(instruction_format, instruction, text) for text in texts]


def _keep_scores(
    scores: NDArray[np.float64],
    rows: NDArray[np.intp],
    progress: tqdm[Any] | None,
    batch: Batch,
    outputs: list[NDArray[np.float32]],
) -> None:
    scores[rows[batch.rows]] = outputs[0][:, 0]
    if progress is not None:
        progress.update(len(batch.rows))


def _name_row(name: str, rows: NDArray[np.intp], row: int) -> str:
    return name.format(rows[row])


def sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return numbers between 0 and 1, as FlagEmbedding computes them."""
    with np.errstate(over="ignore"):  # of a very low score, which becomes 0
        return 1 / (1 + np.exp(-scores))
