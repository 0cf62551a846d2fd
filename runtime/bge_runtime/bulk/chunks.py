"""Long texts in chunks that a model reads completely."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from bge_runtime.encoding import TextTokenizer, TokenPlaces, check_positive, check_unicode

_SEGMENT_CHARACTERS = 1 << 16
"""Characters of a long text that are tokenized at once to find places to cut, so that memory stays
flat. Of "a.a.a." each takes 500 bytes."""

_CHARACTERS_A_TOKEN = 32
"""As many characters are tokenized at once for each token of a chunk, so that few are twice."""

_UNCERTAIN_TOKENS = 16
"""Tokens at the end of a segment that may be others in the whole text."""

_JOINERS = frozenset("\u200d\ufe0e\ufe0f")
"""What belongs to the character before it. A zero-width joiner also joins the one behind it."""

_SKIN_TONES = range(0x1F3FB, 0x1F400)

_SPACE, _WORD, _CHARACTER, _INSIDE = range(4)
"""How good a place to cut is: the lower, the better."""


class Chunk(NamedTuple):
    """A part of a text.

    Attributes:
        start: Its first character.
        end: The character behind its last one.
    """

    start: int
    end: int


def check_chunking(
    chunk_tokens: int, overlap: int, *, special_tokens: int, max_length: int
) -> None:
    """Check the sizes of chunks.

    Args:
        chunk_tokens: Maximum tokens of a chunk, special tokens included.
        overlap: Tokens that consecutive chunks share.
        special_tokens: Special tokens around a text.
        max_length: Maximum tokens that the model reads of a text.

    Raises:
        ValueError: If chunks would be empty or truncated, or would not advance.
    """
    check_positive("chunk_tokens", chunk_tokens)
    if overlap < 0:
        raise ValueError(f"overlap={overlap} is negative; pass 0 for chunks that share nothing")
    if chunk_tokens > max_length:
        raise ValueError(
            f"chunk_tokens={chunk_tokens} is more than the {max_length} tokens that the model "
            "reads of a text; pass that or less"
        )
    if overlap >= chunk_tokens - special_tokens:
        raise ValueError(
            f"chunk_tokens={chunk_tokens} leaves {max(0, chunk_tokens - special_tokens)} tokens "
            f"beside the {special_tokens} special ones, and overlap={overlap} has to be less than "
            "that"
        )


def split_texts(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    *,
    chunk_tokens: int,
    overlap: int = 0,
    first: int = 0,
) -> list[list[Chunk]]:
    """Return the chunks of texts: parts with so many tokens each, cut between words.

    A text that fits is one chunk, and so is one without tokens. Others are cut at white space,
    or else between the pre-tokenizer's words, or else between characters, where such a place is in
    the last quarter of the tokens. White space at a cut belongs to no chunk.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts.
        chunk_tokens: Maximum tokens of a chunk, special tokens included, if it is tokenized by
            itself. A single character with more tokens than that is a chunk all the same.
        overlap: Tokens that consecutive chunks share; fewer where a word begins behind that place.
        first: Position of the first text in the caller's list, for errors.

    Returns:
        For each text at least one chunk, in order.

    Raises:
        ValueError: If a text is not valid Unicode.
    """
    room = chunk_tokens - tokenizer.special_tokens
    step = max(_SEGMENT_CHARACTERS, _CHARACTERS_A_TOKEN * chunk_tokens)
    found: list[list[Chunk]] = []
    for index, text in enumerate(texts, start=first):
        if len(text) > step:  # what is wrong behind that place would be found too late
            check_unicode(text, f"text {index}")
    beginnings = tokenizer.locate([text[:step] for text in texts], first=first)
    for text, places in zip(texts, beginnings, strict=True):
        if len(text) <= step and len(places.starts) <= room:
            found.append([Chunk(0, len(text))])
            continue
        chunks = list(_Splitter(tokenizer, text, room, overlap, step, places).split())
        found.append(chunks or [Chunk(0, 0)])  # of nothing but white space
    return found


class _Splitter:
    """Splits one text, segment by segment: each begins where a chunk does."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        text: str,
        room: int,
        overlap: int,
        step: int,
        places: TokenPlaces,
    ) -> None:
        """Begin with the tokens of the first ``step`` characters."""
        self._tokenizer = tokenizer
        self._text = text
        self._room = room
        self._overlap = overlap
        self._step = step
        self._covered = 0
        self._set_segment(min(step, len(text)), places)

    def split(self) -> Iterator[Chunk]:
        """Yield the chunks of a text that does not fit into one, or may not."""
        place = 0
        while (start := self._skip_space(place)) < len(self._text):
            self._read_ahead(start)
            end, following = self._cut(start)
            chunk = Chunk(start, self._strip_space(start, end))
            if chunk.end <= self._covered:  # nothing but overlap
                place = max(self._covered, end)
                continue
            self._covered = chunk.end
            yield chunk
            if end >= len(self._text):
                return
            place = following

    def _cut(self, start: int) -> tuple[int, int]:
        """Return where a chunk ends, and where the next one begins."""
        end, following = self._place(start, self._room)
        if self._is_clean(start) and self._is_clean(end):
            return end, following
        tokens, missing = self._room, 1
        while True:
            length = self._strip_space(start, end) - start
            surplus = self._tokenizer.count(self._text[start : start + length]) - self._room
            if surplus <= 0 or length <= 1:
                return end, following
            # By itself it has more tokens, which is rare. Faster each time, to come to an end.
            tokens -= max(surplus, missing)
            missing *= 2
            if tokens > 0:
                end, following = self._place(start, tokens)
            else:
                end = following = start + length // 2

    def _is_clean(self, place: int) -> bool:
        """Return whether a cut certainly leaves the tokens on both sides as they are."""
        at_an_end = place in (0, len(self._text))
        return at_an_end or self._tokenizer.cuts_between_words(self._text, place)

    def _place(self, start: int, tokens: int) -> tuple[int, int]:
        """Return the end of a chunk of so many tokens, and the start of the next one."""
        # A token may begin at the space before the word, or be that space.
        spaced = start > 0 and self._text[start - 1].isspace()
        first = bisect_left(self._starts, start - spaced)
        last = first + tokens
        if last >= len(self._starts):
            return len(self._text), len(self._text)
        near = max(1, tokens - max(tokens // 4, min(tokens, _UNCERTAIN_TOKENS)))
        cut = self._best(range(last, first + near - 1, -1), max(start, self._covered))
        if cut is None:
            cut = self._best(range(first + near - 1, first, -1), start)
        if cut is None:  # one character with more tokens than that
            return start + 1, start + 1
        end = self._starts[cut]
        if not self._overlap:
            return end, end
        shared = self._best(range(cut - self._overlap, cut - self._overlap // 2), start)
        return end, end if shared is None else self._starts[shared]

    def _best(self, candidates: range, start: int) -> int | None:
        """Return the first one of the best places behind ``start``, as the number of a token."""
        best, found = _INSIDE + 1, None
        for token in candidates:
            if token > 0 and self._starts[token] > max(start, self._starts[token - 1]):
                rank = self._rank(token)
                if rank < best:
                    best, found = rank, token
                if rank == _SPACE:
                    break
        return found

    def _rank(self, token: int) -> int:
        """Return how good a place before a token is to cut."""
        before, after = self._text[self._starts[token] - 1], self._text[self._starts[token]]
        if before.isspace() or after.isspace():
            return _SPACE
        if (
            after in _JOINERS
            or before == "\u200d"
            or ord(after) in _SKIN_TONES
            or unicodedata.category(after).startswith("M")
        ):
            return _INSIDE
        return _CHARACTER if self._words[token] == self._words[token - 1] else _WORD

    def _read_ahead(self, start: int) -> None:
        """Tokenize on until more tokens are known than a chunk has."""
        needed = self._room + 1 + _UNCERTAIN_TOKENS
        length = self._step
        while (
            self._end < len(self._text)
            and len(self._starts) - bisect_left(self._starts, start) < needed
        ):
            end = min(start + length, len(self._text))
            (places,) = self._tokenizer.locate([self._text[start:end]])
            self._set_segment(end, places, start)
            length *= 2

    def _set_segment(self, end: int, places: TokenPlaces, start: int = 0) -> None:
        self._end = end
        # Ascending, also where a normalizer has changed the order of characters.
        self._starts = list(accumulate((start + each for each in places.starts), max))
        self._words = places.words

    def _skip_space(self, place: int) -> int:
        while place < len(self._text) and self._text[place].isspace():
            place += 1
        return place

    def _strip_space(self, start: int, end: int) -> int:
        while end > start + 1 and self._text[end - 1].isspace():
            end -= 1
        return end
