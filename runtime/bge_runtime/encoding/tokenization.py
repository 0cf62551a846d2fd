"""Text to token ids, exactly as transformers' fast tokenizers do it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from bge_runtime.encoding.validation import check_unicode
from bge_runtime.errors import BundleError

_CHARACTERS_AT_ONCE = 1 << 18
"""Characters of the texts that ``tokenizers`` is given at once. Its answer holds some 130 bytes a
token (the token's text, where it stood, masks), of which only the ids are kept: for 2,048 texts of
1 to 512 words, all at once, it took 86 MB, and this way 15, in the same time."""

_LONG_TEXT = 1 << 18
"""Characters of a text of which only the beginning is tokenised, where that is enough."""

_BETWEEN_WORDS = re.compile("(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
"""Where a text may be cut: nothing composes with a plain letter and a plain space."""

_CHARACTERS_A_TOKEN = 16
"""How much of a long text is tried first, for each token of it that is asked for."""

_LOCAL = frozenset({
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
    "Strip", "StripAccents",
    "BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace",
    "WhitespaceSplit",
})  # fmt: skip
"""Normalisers and pre-tokenisers that make the same of a text up to such a place, whatever comes
behind. Others may look on, as a pattern does."""

_PROBE = {"a": 2**32 - 2, "b": 2**32 - 1}
"""A vocabulary of two words, whose ids are no other's."""


class TextTokenizer:
    """A tokenizer without state: any thread may use any ``max_length`` at any time.

    ``tokenizers`` keeps truncation as a setting of the tokenizer, which threads with
    different lengths would have to take turns on. Here special tokens and truncation
    are applied afterwards, to the ids.
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
        # Files in the wild carry both: all-MiniLM-L6-v2 pads everything to 128.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        try:
            self._prefix, self._suffix = special_tokens_around(self.tokenizer)
        except BundleError as error:
            raise BundleError(f"cannot use the tokenizer {path}: {error}") from error

    @property
    def special_tokens(self) -> int:
        """How many tokens it puts around a text."""
        return len(self._prefix) + len(self._suffix)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Give the text of tokens, special ones included."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def decode_batch(self, token_ids: Sequence[NDArray[np.int64]]) -> list[str]:
        """Give the text of each array of tokens, special ones included."""
        rows = [ids.tolist() for ids in token_ids]
        return list(self.tokenizer.decode_batch(rows, skip_special_tokens=False))

    def encode_start(self, text: str) -> NDArray[np.int64]:
        """Tokenise the beginning of a text that goes on: no special token behind it.

        Where it goes on the tokens may differ, since a word may take the last ones in.
        """
        (ids,) = self.encode_bare([text])
        return np.array([*self._prefix, *ids], dtype=np.int64)

    def encode_bare(
        self, texts: Sequence[str], *, max_length: int | None = None, first: int = 0
    ) -> list[NDArray[np.int64]]:
        """Tokenise texts without special tokens around them.

        Args:
            texts: Texts; may be empty strings.
            max_length: Most tokens a text may take; None for any number.
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

    def encode(
        self, texts: Sequence[str], *, max_length: int, first: int = 0
    ) -> list[NDArray[np.int64]]:
        """Tokenise texts, special tokens included, truncated on the right.

        Of a text of more than 262,144 characters only the beginning is tokenised, if that is sure
        to give the same tokens: where words are tokenised one by one and have plain spaces between
        them. Otherwise it is tokenised whole, which takes some 80 bytes of memory a character.

        Args:
            texts: Texts; may be empty strings.
            max_length: Most tokens a text may take, special tokens included.
            first: Position of the first text in the caller's list, for errors.

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
        rows = [
            np.array([*prefix, *encoding.ids[:room], *suffix], dtype=np.int64)
            for encoding in self._encodings(texts, first, room)
        ]
        for index, row in enumerate(rows):
            if not len(row):  # of a decoder without special tokens
                raise ValueError(
                    f"text {first + index} ({texts[index]!r}) has no tokens, and this model's "
                    "tokenizer adds none of its own, so that it has no vector. Leave it out"
                )
        return rows

    def _encodings(self, texts: Sequence[str], first: int, most: int | None) -> Iterator[Any]:
        """Tokenise texts, of which the first ``most`` tokens are wanted."""
        try:
            for some in _runs_of(texts, _CHARACTERS_AT_ONCE):
                (text, *others) = some
                if most is not None and len(text) > _LONG_TEXT and not others and self._is_local:
                    yield self._beginning(text, most)
                else:
                    yield from self.tokenizer.encode_batch_fast(some, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for index, each in enumerate(texts, start=first):
                check_unicode(each, f"text {index}")
            raise

    def _beginning(self, text: str, most: int) -> Any:
        """Tokenise as much of a long text as its first tokens take."""
        if not text.isascii():
            text.encode()  # what is behind the cut is to be valid, too
        length = _CHARACTERS_A_TOKEN * most
        while place := _BETWEEN_WORDS.search(text, length):
            (encoding,) = self.tokenizer.encode_batch_fast(
                [text[: place.start()]], add_special_tokens=False
            )
            if len(encoding) >= most:
                return encoding
            length = 4 * place.end()
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]

    @functools.cached_property
    def _is_local(self) -> bool:
        """Whether the tokens up to a place of `_BETWEEN_WORDS` depend on nothing behind it.

        That holds where no added token reaches across it, normalisers look at single characters or
        at what composes with them, and the model gets what is on either side separately.
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
    """Return the special tokens that a tokenizer puts before a text, and those behind it.

    Its post-processor is asked alone, with tokens that no vocabulary has, so that it is of no
    account what the tokenizer knows.

    Raises:
        BundleError: If it does anything else to a text's tokens.
    """
    first, second = _PROBE.values()
    probe = Tokenizer(models.WordLevel(_PROBE, unk_token="a"))
    probe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if tokenizer.post_processor is not None:
        probe.post_processor = tokenizer.post_processor
    ids = probe.encode("a b").ids
    start = ids.index(first) if first in ids else len(ids)
    prefix, suffix = ids[:start], ids[start + 2 :]
    if ids != [*prefix, first, second, *suffix] or {first, second} & {*prefix, *suffix}:
        raise BundleError(
            "it does more to a text's tokens than to put special tokens before and behind them: "
            f"of two it makes {_shown(ids)}"
        )
    return prefix, suffix


def _shown(ids: Sequence[int]) -> str:
    names = {number: f"<{name}>" for name, number in _PROBE.items()}
    return " ".join(names.get(number, str(number)) for number in ids) or "none"


def _parts(*components: Any) -> Iterator[dict[str, Any]]:
    """List what normalisers and pre-tokenisers consist of, as a tokenizer's file has it."""
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


def _runs_of(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Give texts in lists of so many characters, or one text."""
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
