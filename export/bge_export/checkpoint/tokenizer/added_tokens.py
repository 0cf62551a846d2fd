"""Add the tokens that settings list and ``tokenizer.json`` lacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bge_export.checkpoint.tokenizer.classes import TokenizerClass
from bge_export.checkpoint.tokenizer.tokenizer import SPECIAL_TOKENS_FILE, read_optional

ROLES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""Roles of special tokens, in the order in which transformers adds new ones."""


def add_listed_tokens(
    tokenizer: Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    kind: TokenizerClass,
    padding: str | None,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Add the tokens that settings list, as transformers 4.57 does.

    Returns:
        Special tokens by role, and special tokens without a role.
    """
    named = {**({"pad_token": padding} if padding else {}), **settings}
    sources = [settings]
    listed = settings.get("added_tokens_decoder")
    if listed is None:  # as transformers wrote it until 4.33
        sources.append(read_optional(folder / SPECIAL_TOKENS_FILE))
        named |= sources[1]
    tokens = {role: _make_token(named[role]) for role in ROLES if named.get(role) is not None}
    others = []
    for source in sources:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            values = source.get(key) or ()
            values = values.values() if isinstance(values, dict) else values
            others += [_make_token(value) for value in values]
    for role, token in kind.special_tokens.items():
        if role not in named and tokenizer.token_to_id(token) is not None:
            tokens[role] = AddedToken(token, special=True)
    special = [*tokens.values(), *others]
    contents = {token.content for token in special}
    if listed is None:
        numbers = read_optional(folder / "added_tokens.json")
        own = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        listed = {
            number: {"content": content, "normalized": content not in contents}
            for content, number in numbers.items()
            if content not in own
        }
    known = tokenizer.get_added_tokens_decoder().values()
    states = {repr(token) for token in known}
    new = [_make_token(listed[number], special=False) for number in sorted(listed, key=int)]
    new = [token for token in new if repr(token) not in states]
    there = {token.content for token in (*known, *new)}
    for token in special:
        if token.content not in there:
            new.append(token)
            there.add(token.content)
    for token in new:
        token.special = token.special or token.content in contents
    tokenizer.add_tokens(new)
    return (
        {role: tokens[role].content for role in ROLES if role in tokens},
        tuple(dict.fromkeys(token.content for token in others)),
    )


def _make_token(value: Any, *, special: bool = True) -> AddedToken:
    if isinstance(value, dict):
        fields = {key: item for key, item in value.items() if key != "__type"}
        return AddedToken(**{"special": special, **fields})
    return AddedToken(str(value), special=special)
