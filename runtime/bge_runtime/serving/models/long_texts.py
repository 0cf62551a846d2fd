"""Texts that are so long that tokenizing them would take the memory of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from bge_runtime.encoding import TextTokenizer
from bge_runtime.serving.errors import Kind, RequestError

MAX_CHARACTERS = 1 << 19
"""Characters of a text that are tokenized at once. Of "a.a.a." that takes 500 bytes for each: 15 GB
for a request of 30 MB."""


def shorten(
    texts: Sequence[str],
    tokenizer: TextTokenizer,
    max_length: int,
    *,
    first: int = 0,
    keep_end: bool = False,
    name: str = "input {}",
) -> Sequence[str]:
    """Return texts, of very long ones only as much as decides about their first tokens.

    Args:
        texts: The texts.
        tokenizer: Their tokenizer.
        max_length: Tokens that are kept.
        first: Position of the first text in the request, for errors.
        keep_end: Whether the last tokens are needed, and so all of a text.
        name: What a text is called in errors, with its position.

    Raises:
        RequestError: If a very long text has no place where it can be cut without a doubt.
    """
    if all(len(text) <= MAX_CHARACTERS for text in texts):
        return texts
    found = []
    for index, text in enumerate(texts, start=first):
        start: str | None = text
        if len(text) > MAX_CHARACTERS:
            start = None
            if not keep_end:
                start = tokenizer.beginning(text, max_length + 1, most_characters=MAX_CHARACTERS)
        if start is None:
            raise RequestError(
                Kind.TOO_LARGE,
                f"{name.format(index)} has {len(text):,} characters, and no more than "
                f"{MAX_CHARACTERS:,} are tokenized of a text that is not cut on the right between "
                "two words of plain letters. Send only as much of it as the model reads",
                param="input",
            )
        found.append(start)
    return found
