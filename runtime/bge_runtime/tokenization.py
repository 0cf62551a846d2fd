"""Text to token ids, exactly as transformers' fast tokenizers do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bge_runtime.arguments import check_unicode
from bge_runtime.errors import BundleError

_CHARACTERS_AT_ONCE = 1 << 18
"""Characters of the texts that ``tokenizers`` is given at once. Its answer holds some 130 bytes a
token (the token's text, where it stood, masks), of which only the ids are kept: for 2,048 texts of
1 to 512 words, all at once, it took 86 MB, and this way 15, in the same time."""


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
        bare = self.tokenizer.encode("a", add_special_tokens=False).ids
        full = self.tokenizer.encode("a", add_special_tokens=True).ids
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        if not bare or not starts:
            raise BundleError(f"the tokenizer {path} does not put special tokens around a text")
        self._prefix = full[: starts[0]]
        self._suffix = full[starts[0] + len(bare) :]

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
            for encoding in self._encodings(texts, first)
        ]

    def encode(
        self, texts: Sequence[str], *, max_length: int, first: int = 0
    ) -> list[NDArray[np.int64]]:
        """Tokenise texts, special tokens included, truncated on the right.

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
            for encoding in self._encodings(texts, first)
        ]
        for index, row in enumerate(rows):
            if not len(row):  # of a decoder without special tokens
                raise ValueError(
                    f"text {first + index} ({texts[index]!r}) has no tokens, and this model's "
                    "tokenizer adds none of its own, so that it has no vector. Leave it out"
                )
        return rows

    def _encodings(self, texts: Sequence[str], first: int) -> Iterator[Any]:
        try:
            for some in _runs_of(texts, _CHARACTERS_AT_ONCE):
                yield from self.tokenizer.encode_batch_fast(some, add_special_tokens=False)
        except TypeError:
            for index, text in enumerate(texts, start=first):
                check_unicode(text, f"text {index}")
            raise


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
