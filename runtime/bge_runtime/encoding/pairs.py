"""From pairs of a query and a passage to token ids, as FlagEmbedding's rerankers make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bge_runtime.bundle import SECOND_TEXT, RerankerPrompt
from bge_runtime.encoding.tokenization import TextTokenizer, make_probe
from bge_runtime.errors import BundleError

Ids = NDArray[np.int64]

_Row = TypeVar("_Row")


class PairEncoder(Protocol):
    """What makes the tokens of pairs."""

    def encode(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        max_length: int,
        query_max_length: int,
        first: int = 0,
        truncated: list[int] | None = None,
    ) -> list[Ids]:
        """Return the token ids of pairs.

        Args:
            queries: Queries, of valid Unicode; each distinct one is tokenized once.
            passages: A passage for each of them.
            max_length: Maximum tokens of a pair.
            query_max_length: Maximum tokens of a query.
            first: Position of the first pair in the caller's list, for errors and ``truncated``.
            truncated: Receives the positions of pairs that were cut.

        Returns:
            One array of ids for each pair. Shape: ``(tokens,)``.

        Raises:
            ValueError: If ``max_length`` leaves no room for texts, or one is not valid Unicode.
        """
        ...

    def encode_start(self, query: str | None, *, max_length: int, query_max_length: int) -> Ids:
        """Return the tokens that all pairs begin with, those with a query unless it is None.

        Empty where nothing is known to be shared.
        """
        ...


class PairTokenizer:
    """Makes the tokens of pairs for encoders: both texts, with special tokens around them.

    A query is cut first, at ``query_max_length``; the passage then gets what it leaves of
    ``max_length``, which may be nothing. FlagEmbedding keeps rows longer than ``max_length`` where
    that is less than a short passage has.
    """

    def __init__(self, tokenizer: TextTokenizer, *, token_types: bool) -> None:
        """Read the special tokens around pairs.

        Args:
            tokenizer: The tokenizer.
            token_types: Mark the tokens of passages with `bge_runtime.bundle.SECOND_TEXT`.

        Raises:
            BundleError: If the tokenizer does more to pairs than to put special tokens around them.
        """
        self._tokenizer = tokenizer
        self._special = special_tokens_around_pair(tokenizer.tokenizer, token_types=token_types)

    @property
    def special_tokens(self) -> int:
        """Number of special tokens around a pair."""
        return sum(map(len, self._special[:3]))

    def encode(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        max_length: int,
        query_max_length: int,
        first: int = 0,
        truncated: list[int] | None = None,
    ) -> list[Ids]:
        """Return the token ids of pairs; see `PairEncoder.encode`."""
        room = max_length - self.special_tokens
        check_room(room, self.special_tokens, "special", max_length)
        limit = min(query_max_length, room)
        before, between, after, offset = self._special
        starts = _encode_once(
            queries, lambda texts: self._tokenizer.encode_bare(texts, max_length=limit + 1)
        )
        rows = []
        ends = self._tokenizer.encode_bare(passages, max_length=room + 1, first=first)
        for position, (query, passage) in enumerate(zip(starts, ends, strict=True), start=first):
            left = room - min(len(query), limit)
            if truncated is not None and (len(query) > limit or len(passage) > left):
                truncated.append(position)
            parts = (before, query[:limit], between, passage[:left] + offset, after)
            rows.append(np.concatenate(parts))
        return rows

    def encode_start(
        self,
        query: str | None,  # noqa: ARG002
        *,
        max_length: int,  # noqa: ARG002
        query_max_length: int,  # noqa: ARG002
    ) -> Ids:
        """Return no tokens: those of an encoder depend on all others."""
        return np.empty(0, dtype=np.int64)


class PromptTokenizer:
    """Makes the tokens of pairs for decoders: a question about a query and a passage.

    The parts of the prompt are tokenized one by one. ``max_length`` is counted as the model's
    authors do; see `bge_runtime.bundle.RerankerPrompt`.
    """

    def __init__(
        self, tokenizer: TextTokenizer, prompt: RerankerPrompt, *, longest: int | None = None
    ) -> None:
        """Tokenize the parts that are the same for all pairs.

        Args:
            tokenizer: The tokenizer.
            prompt: The prompt.
            longest: Tokens that the model can read, which no pair exceeds; None for no limit.
        """
        self._tokenizer = tokenizer
        self._longest = longest
        self._prompt = prompt
        fixed = tokenizer.encode_bare([prompt.start, prompt.separator, *prompt.end])
        self._start, self._separator, *end = fixed
        self._end = np.concatenate(end)
        # FlagEmbedding adds the lengths of separator and question to max_length when it cuts the
        # passage, before it appends both.
        extra = len(self._separator) + len(end[-1])
        self._beyond = -len(self._end) if prompt.counts_all else extra

    def encode(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        max_length: int,
        query_max_length: int,
        first: int = 0,
        truncated: list[int] | None = None,
    ) -> list[Ids]:
        """Return the token ids of pairs; see `PairEncoder.encode`."""
        prompt = self._prompt
        room, limit = self._room(max_length, query_max_length)
        starts = _encode_once(queries, lambda texts: self._encode_queries(texts, limit))
        texts = [_fill(prompt.passage_format, prompt.passage_instruction, p) for p in passages]
        ends = self._tokenizer.encode_bare(texts, max_length=max_length + 1, first=first)
        rows = []
        for position, (query, passage) in enumerate(zip(starts, ends, strict=True), start=first):
            left = min(room - len(query.ids), max_length)
            if truncated is not None and (query.is_cut or len(passage) > left):
                truncated.append(position)
            parts = (self._start, query.ids, self._separator, passage[: max(left, 0)], self._end)
            rows.append(np.concatenate(parts))
        return rows

    def encode_start(self, query: str | None, *, max_length: int, query_max_length: int) -> Ids:
        """Return the tokens that all pairs begin with; see `PairEncoder.encode_start`."""
        if query is not None:
            _, limit = self._room(max_length, query_max_length)
            ((ids, _),) = self._encode_queries([query], limit)
            return np.concatenate((self._start, ids, self._separator))
        before = self._prompt.query_format.rpartition("{}")[0]
        # A space at the end belongs to the next word.
        text = _fill(before, self._prompt.query_instruction).rstrip()
        return np.concatenate((self._start, *self._tokenizer.encode_bare([text])))

    def _room(self, max_length: int, query_max_length: int) -> tuple[int, int]:
        """Return the maximum tokens of query and passage together, and of the query."""
        most = max_length + self._beyond
        if self._longest is not None:
            most = min(most, self._longest - len(self._end))
        room = most - len(self._start) - len(self._separator)
        check_room(room, max_length - room, "prompt", max_length)
        # Of a length that counts the prompt, too, a query's share could be all that is left.
        most = room * 3 // 4 if self._prompt.counts_all else room
        return room, min(query_max_length, max(most, 1))

    def _encode_queries(self, queries: Sequence[str], limit: int) -> list[_Query]:
        prompt = self._prompt
        texts = [_fill(prompt.query_format, prompt.query_instruction, q) for q in queries]
        found = []
        rows = self._tokenizer.encode_bare(texts)
        for query, ids in zip(queries, rows, strict=True):
            if len(ids) <= limit:
                found.append(_Query(ids, is_cut=False))
            elif not prompt.counts_all:  # as FlagEmbedding, which may cut the end of the format
                found.append(_Query(ids[:limit], is_cut=True))
            else:
                found.append(_Query(self._cut_query(query, limit, len(ids) - limit), is_cut=True))
        return found

    def _cut_query(self, query: str, limit: int, excess: int) -> Ids:
        """Return the tokens of a query that is cut so that the text behind it stays."""
        prompt = self._prompt
        (places,) = self._tokenizer.locate([query])
        kept = len(places.starts)
        while kept and excess > 0:
            kept = max(0, kept - excess)
            text = _fill(
                prompt.query_format, prompt.query_instruction, query[: places.starts[kept]]
            )
            (ids,) = self._tokenizer.encode_bare([text])
            excess = len(ids) - limit
        if excess > 0:
            raise ValueError(
                f"query_max_length={limit} leaves no room for a query: the text around it in this "
                f"model's prompt takes {limit + excess} tokens"
            )
        return ids


class _Query(NamedTuple):
    ids: Ids
    is_cut: bool


def check_room(room: int, taken: int, what: str, max_length: int) -> None:
    """Check that a maximum length leaves room for texts.

    Raises:
        ValueError: If it does not.
    """
    if room < 1:
        raise ValueError(
            f"max_length={max_length} leaves no room for query and passage beside the {taken} "
            f"{what} tokens of this model"
        )


def _fill(template: str, *texts: str) -> str:
    # A literal \n in a format is a newline, as in FlagEmbedding.
    return template.replace("\\n", "\n").format(*texts)


def _encode_once(texts: Sequence[str], encode: Callable[[list[str]], Sequence[_Row]]) -> list[_Row]:
    """Return what ``encode`` returns for each text, which is given each distinct one once."""
    unique = list(dict.fromkeys(texts))
    found = dict(zip(unique, encode(unique), strict=True))
    return [found[text] for text in texts]


class _Special(NamedTuple):
    before: Ids
    between: Ids
    after: Ids
    passage_offset: int


def special_tokens_around_pair(tokenizer: Tokenizer, *, token_types: bool) -> _Special:
    """Return the special tokens before, between and behind the texts of a pair.

    Args:
        tokenizer: The tokenizer, of which only the post-processor is run.
        token_types: Add `bge_runtime.bundle.SECOND_TEXT` to the ids of the second token type.

    Returns:
        These tokens, and what is added to the ids of the second text.

    Raises:
        BundleError: If it changes the tokens of texts in any other way, or has further types.
    """
    probe, (first, second) = make_probe(tokenizer)
    encoding = probe.encode("a", "b")
    ids, types = encoding.ids, encoding.type_ids
    start, end = (ids.index(each) if each in ids else len(ids) for each in (first, second))
    special = [*ids[:start], *ids[start + 1 : end], *ids[end + 1 :]]
    if not start < end < len(ids) or {first, second} & {*special} or not {*types} <= {0, 1}:
        raise BundleError(
            "it does more to a pair's tokens than to put special tokens around them, or leaves "
            "one of its texts out"
        )
    offsets = np.array(types, dtype=np.int64) * (SECOND_TEXT if token_types else 0)
    row = np.array(ids, dtype=np.int64) + offsets
    return _Special(row[:start], row[start + 1 : end], row[end + 1 :], int(offsets[end]))
