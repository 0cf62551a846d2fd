"""From text to token ids, exactly as transformers' fast tokenizers do it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from bge_runtime.encoding.validation import check_unicode
from bge_runtime.errors import BundleError

_CHARACTERS_AT_ONCE = 1 << 18
"""Characters of the texts that are passed to ``tokenizers`` at once. Its result holds about 130
bytes for each token (text, offsets, masks), of which only the ids are kept. For 2,048 texts of 1 to
512 words it took 86 MB at once, and 15 MB in parts of this size, in the same time."""

_FEW_CHARACTERS = 2048
"""Characters up to which texts are tokenized by the calling thread. The threads of ``tokenizers``
are those of the process: a query would wait there for the texts of others, for 50 ms and more."""

_LONG_TEXT = 1 << 18
"""Characters above which only the beginning of a text is tokenized, where that is enough."""

_BETWEEN_WORDS = re.compile("(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
"""Where a text may be cut: no normalizer combines a plain letter with a plain space."""

_CHARACTERS_A_TOKEN = 16
"""Characters of a long text that are tried first, for each token that is needed."""

_LOCAL = frozenset({
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
    "Strip", "StripAccents",
    "BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace",
    "WhitespaceSplit",
})  # fmt: skip
"""Normalizers and pre-tokenizers whose result up to such a place does not depend on what follows.
Others may look ahead, as a pattern does."""

_PROBE = {"a": 2**32 - 2, "b": 2**32 - 1}
"""A vocabulary of two words, with ids that no other vocabulary has."""


class TokenPlaces(NamedTuple):
    """Where the tokens of a text are, special tokens not included.

    Attributes:
        starts: Character where each token begins. Tokens of one character begin at the same one.
        words: Number of each token's word, as the pre-tokenizer sees words.
    """

    starts: list[int]
    words: list[int | None]


class TextTokenizer:
    """A tokenizer without state: any thread may use any ``max_length`` at any time.

    In ``tokenizers``, truncation is a setting of the tokenizer, so threads with different lengths
    would have to wait for each other. Here special tokens and truncation are applied afterwards,
    to the ids.
    """

    def __init__(self, path: Path) -> None:
        """Load a ``tokenizer.json``.

        Raises:
            BundleError: If the file cannot be parsed.
        """
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"cannot load the tokenizer {path}: {error}") from error
        # Published files may have both: all-MiniLM-L6-v2 pads everything to 128.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        try:
            self._prefix, self._suffix = special_tokens_around(self.tokenizer)
        except BundleError as error:
            raise BundleError(f"cannot use the tokenizer {path}: {error}") from error

    @property
    def special_tokens(self) -> int:
        """Number of special tokens around a text."""
        return len(self._prefix) + len(self._suffix)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens included."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def decode_batch(self, token_ids: Sequence[NDArray[np.int64]]) -> list[str]:
        """Return the text of each array of tokens, special tokens included."""
        rows = [ids.tolist() for ids in token_ids]
        return list(self.tokenizer.decode_batch(rows, skip_special_tokens=False))

    def encode_start(self, text: str) -> NDArray[np.int64]:
        """Return the tokens of the beginning of a longer text: no special token follows.

        The last ones may differ from those of the whole text, where a word continues.
        """
        (ids,) = self.encode_bare([text])
        return np.array([*self._prefix, *ids], dtype=np.int64)

    def encode_bare(
        self, texts: Sequence[str], *, max_length: int | None = None, first: int = 0
    ) -> list[NDArray[np.int64]]:
        """Return the token ids of texts, without special tokens.

        Args:
            texts: Texts; may be empty strings.
            max_length: Maximum tokens of a text; None for no limit.
            first: As in `encode`.

        Returns:
            One array of ids for each text, which may be empty. Shape: ``(tokens,)``.

        Raises:
            ValueError: If a text is not valid Unicode.
        """
        return [
            np.array(encoding.ids[:max_length], dtype=np.int64)
            for encoding in self._encodings(texts, first, max_length)
        ]

    def locate(self, texts: Sequence[str], *, first: int = 0) -> list[TokenPlaces]:
        """Return where the tokens of texts are, all of them.

        It takes about 200 bytes for each token at once.

        Args:
            texts: Texts; may be empty strings.
            first: As in `encode`.

        Raises:
            ValueError: If a text is not valid Unicode.
        """
        return [
            TokenPlaces([start for start, _ in encoding.offsets], encoding.word_ids)
            for encoding in self._encodings(texts, first, None, offsets=True)
        ]

    def count(self, text: str) -> int:
        """Return the number of tokens of a valid text, special tokens not included."""
        (encoding,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return len(encoding)

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_length: int,
        first: int = 0,
        truncated: list[int] | None = None,
        keep_end: bool = False,
    ) -> list[NDArray[np.int64]]:
        """Return the token ids of texts, special tokens included, truncated on the right.

        Of a text of more than 262,144 characters only the beginning is tokenized, if that is
        certain to give the same tokens: where words are tokenized one by one, with plain spaces
        between them. Otherwise the whole text is, which takes about 80 bytes for each character.

        Args:
            texts: Texts; may be empty strings.
            max_length: Maximum tokens of a text, special tokens included.
            first: Position of the first text in the caller's list, for errors.
            truncated: Receives the positions of texts that were truncated.
            keep_end: Truncate on the left instead. Then all of a text is tokenized.

        Returns:
            One array of ids for each text. Shape: ``(tokens,)``.

        Raises:
            ValueError: If ``max_length`` leaves no room for the special tokens, or a
                text is not valid Unicode, or has no tokens.
        """
        room = max_length - self.special_tokens
        if room < 0:
            raise ValueError(
                f"max_length={max_length} leaves no room for the "
                f"{self.special_tokens} special tokens of this model"
            )
        prefix, suffix = self._prefix, self._suffix
        rows = []
        # One token more than there is room for tells that a text is longer.
        enough = None if keep_end else room + 1
        for position, encoding in enumerate(self._encodings(texts, first, enough), start=first):
            ids = encoding.ids
            if len(ids) > room:
                if truncated is not None:
                    truncated.append(position)
                ids = ids[len(ids) - room :] if keep_end else ids[:room]
            rows.append(np.array([*prefix, *ids, *suffix], dtype=np.int64))
        for index, row in enumerate(rows):
            if not len(row):  # of a decoder without special tokens
                raise ValueError(
                    f"text {first + index} ({texts[index]!r}) has no tokens, and this model's "
                    "tokenizer adds none of its own, so that it has no vector. Leave it out"
                )
        return rows

    def _encodings(
        self, texts: Sequence[str], first: int, most: int | None, *, offsets: bool = False
    ) -> Iterator[Any]:
        """Yield the encoding of each text, of which the first ``most`` tokens are needed."""
        encode = self.tokenizer.encode_batch if offsets else self.tokenizer.encode_batch_fast
        try:
            for some in _split_by_size(texts, _CHARACTERS_AT_ONCE):
                (text, *others) = some
                if most is not None and len(text) > _LONG_TEXT and not others and self._is_local:
                    yield self._beginning(text, most)
                elif sum(map(len, some)) <= _FEW_CHARACTERS:
                    for each in some:
                        yield self.tokenizer.encode(each, add_special_tokens=False)
                else:
                    yield from encode(some, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for index, each in enumerate(texts, start=first):
                check_unicode(each, f"text {index}")
            raise

    def beginning(self, text: str, tokens: int, *, most_characters: int) -> str | None:
        """Return a beginning of a text that has the same first tokens.

        Args:
            text: The text.
            tokens: How many of them.
            most_characters: Maximum length of the beginning.

        Returns:
            The beginning; None if none so short is certain to have the same tokens.
        """
        if not self._is_local:
            return None
        found = next(self._beginnings(text, tokens, most_characters), None)
        return None if found is None else found[0]

    def _beginning(self, text: str, most: int) -> Any:
        """Return the encoding of as much of a long text as its first tokens need."""
        if not text.isascii():
            text.encode()  # what is cut off must be valid, too
        for _, encoding in self._beginnings(text, most, len(text)):
            return encoding
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]

    def _beginnings(self, text: str, tokens: int, most: int) -> Iterator[tuple[str, Any]]:
        """Yield beginnings with so many tokens, and their encodings, the shortest first."""
        length = _CHARACTERS_A_TOKEN * tokens
        # The place is one character, and those beside it are looked at.
        while place := _BETWEEN_WORDS.search(text, length, most + 2):
            start = text[: place.start()]
            (encoding,) = self.tokenizer.encode_batch_fast([start], add_special_tokens=False)
            if len(encoding) >= tokens:
                yield start, encoding
            length = 4 * place.end()

    def cuts_between_words(self, text: str, place: int) -> bool:
        """Return whether cutting at a place leaves the tokens on both sides as they are.

        So much is certain only of a space between plain letters, which then belongs to no side.

        Args:
            text: The text.
            place: Position of a space, or of the character behind it.
        """
        space = place if text[place : place + 1] == " " else place - 1
        return self._words_are_alone and _BETWEEN_WORDS.match(text, space) is not None

    @functools.cached_property
    def _words_are_alone(self) -> bool:
        """Whether a word has the same tokens at the beginning of a text as behind a space."""
        if not self._is_local:
            return False
        normalizer, pre_tokenizer = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        texts = ["a b", "b"] if normalizer is None else map(normalizer.normalize_str, ["a b", "b"])
        (_, (behind, _)), ((alone, _),) = map(pre_tokenizer.pre_tokenize_str, texts)
        return bool(behind == alone)

    @functools.cached_property
    def _is_local(self) -> bool:
        """Whether the tokens up to a place of `_BETWEEN_WORDS` do not depend on what follows.

        That holds if no added token spans it, normalizers look at single characters or at those
        that combine with them, and the model receives the two sides separately.
        """
        tokenizer = self.tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        if any(re.search(r"[\s\u2581]", token.content) for token in added):
            return False
        normalizer, pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        if pre_tokenizer is None or not all(map(_is_local, _parts(normalizer, pre_tokenizer))):
            return False
        text = "a b" if normalizer is None else normalizer.normalize_str("a b")
        return len(pre_tokenizer.pre_tokenize_str(text)) == 2


def special_tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer adds before a text, and those after it.

    Only its post-processor is run, with tokens of its own, so the vocabulary does not matter.

    Raises:
        BundleError: If it changes the tokens of a text in any other way.
    """
    probe, (first, second) = make_probe(tokenizer)
    ids = probe.encode("a b").ids
    start = ids.index(first) if first in ids else len(ids)
    prefix, suffix = ids[:start], ids[start + 2 :]
    if ids != [*prefix, first, second, *suffix] or {first, second} & {*prefix, *suffix}:
        raise BundleError(
            "it does more to a text's tokens than to put special tokens before and behind them: "
            f"of two it makes {_shown(ids)}"
        )
    return prefix, suffix


def make_probe(tokenizer: Tokenizer) -> tuple[Tokenizer, tuple[int, int]]:
    """Return a tokenizer of two words, with another one's post-processor.

    Returns:
        The tokenizer, and the ids of its words "a" and "b".
    """
    probe = Tokenizer(models.WordLevel(_PROBE, unk_token="a"))
    probe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if tokenizer.post_processor is not None:
        probe.post_processor = tokenizer.post_processor
    return probe, (_PROBE["a"], _PROBE["b"])


def _shown(ids: Sequence[int]) -> str:
    names = {number: f"<{name}>" for name, number in _PROBE.items()}
    return " ".join(names.get(number, str(number)) for number in ids) or "none"


def _parts(*components: Any) -> Iterator[dict[str, Any]]:
    """Yield the parts of normalizers and pre-tokenizers, as ``tokenizer.json`` has them."""
    waiting = [json.loads(each.__getstate__()) for each in components if each is not None]
    for state in waiting:
        inner = state.get("normalizers", state.get("pretokenizers"))
        if inner is None:
            yield state
        else:
            waiting.extend(inner)


def _is_local(state: dict[str, Any]) -> bool:
    if state["type"] == "Replace":  # XLM-R's: a single space is left alone
        return bool(state["pattern"] == {"Regex": " {2,}"})
    return state["type"] in _LOCAL


def _split_by_size(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Yield lists of texts with so many characters together, or with one text."""
    run: list[str] = []
    room = characters
    for text in texts:
        if run and len(text) > room:
            yield run
            run, room = [], characters
        run.append(text)
        room -= len(text)
    if run:
        yield run
