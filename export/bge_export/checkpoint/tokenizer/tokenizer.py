"""The tokenizer of a checkpoint, and the files that a bundle holds of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from bge_runtime.bundle import TOKENIZER_FILE
from bge_runtime.errors import ExportError
from bge_runtime.system import read_json

SETTINGS_FILE = "tokenizer_config.json"


SPECIAL_TOKENS_FILE = "special_tokens_map.json"


NO_MAX_LENGTH = int(1e30)
"""``model_max_length`` in transformers for a tokenizer without one."""


@dataclass(frozen=True, kw_only=True)
class CheckpointTokenizer:
    """A tokenizer that neither truncates nor pads. Attributes have the names of transformers.

    Attributes:
        backend_tokenizer: The tokenizer itself.
        special_tokens: Special tokens by role, such as ``"pad_token"``.
        additional_special_tokens: Special tokens without a role.
        padding_side: ``"right"`` or ``"left"``.
        truncation_side: The same.
        model_max_length: Tokens to which transformers truncates, if truncation is on.
        clean_up_tokenization_spaces: Whether it removes spaces when it decodes.
        gives_token_types: Whether transformers passes its token types to the model.
    """

    backend_tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    additional_special_tokens: tuple[str, ...] = ()
    padding_side: str = "right"
    truncation_side: str = "right"
    model_max_length: int = NO_MAX_LENGTH
    clean_up_tokenization_spaces: bool = False
    gives_token_types: bool = True

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token ids by token, added tokens included."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.token_id("pad_token")

    def encode(self, texts: Sequence[str], *, max_length: int) -> list[list[int]]:
        """Return the token ids of texts, with special tokens, truncated to a length."""
        self.backend_tokenizer.enable_truncation(max_length)
        try:
            encodings = self.backend_tokenizer.encode_batch(list(texts))
        finally:
            self.backend_tokenizer.no_truncation()
        return [encoding.ids for encoding in encodings]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], *, max_length: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return token ids and token types of pairs, with special tokens, as FlagEmbedding does.

        The query is cut at three quarters of the length, then the passage, so that both fit.
        """
        backend = self.backend_tokenizer
        rows = []
        for query, passage in pairs:
            first, second = (
                backend.encode(text, add_special_tokens=False) for text in (query, passage)
            )
            first.truncate(max_length * 3 // 4)
            special = backend.num_special_tokens_to_add(is_pair=True)
            second.truncate(max(0, max_length - special - len(first)))
            joined = backend.post_process(first, second)
            rows.append((joined.ids, joined.type_ids))
        return rows

    def token_id(self, role: str) -> int:
        """Return the id of the special token with a role, such as ``"pad_token"``."""
        return int(self.backend_tokenizer.token_to_id(self.special_tokens[role]))

    def write(self, folder: Path, *, max_length: int, token_types: bool) -> None:
        """Write files that give the same token ids in every transformers from 4.57 on.

        Args:
            folder: The bundle.
            max_length: Tokens to which other tools truncate.
            token_types: Whether the model takes token types.
        """
        self.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
        added = self.backend_tokenizer.get_added_tokens_decoder()
        fields = {number: _describe_token(token) for number, token in sorted(added.items())}
        names: dict[str, Any] = dict(self.special_tokens)
        if self.additional_special_tokens:
            names["additional_special_tokens"] = list(self.additional_special_tokens)
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        settings = {
            "added_tokens_decoder": fields,
            **names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_input_names": [name for name in inputs if token_types or "type" not in name],
            "model_max_length": max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            # Transformers 4 and 5 both know this class. It leaves tokenizer.json as it is.
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        spaced = read_state(self.backend_tokenizer.pre_tokenizer).get("add_prefix_space")
        if spaced is not None:  # otherwise transformers 4 removes it
            settings["add_prefix_space"] = spaced
        # fastembed adds the tokens of special_tokens_map.json again, as described there.
        by_content = {
            token["content"]: {key: value for key, value in token.items() if key != "special"}
            for token in fields.values()
        }
        described = {
            role: by_content.get(token, token) for role, token in self.special_tokens.items()
        }
        for name, document in (
            (SETTINGS_FILE, settings),
            (SPECIAL_TOKENS_FILE, {**names, **described}),
        ):
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")


def read_state(part: Any) -> dict[str, Any]:
    """Return the settings of a tokenizer's part, as in its file; empty for None."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _describe_token(token: AddedToken) -> dict[str, Any]:
    return {
        "content": token.content,
        "lstrip": token.lstrip,
        "normalized": token.normalized,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
        "special": token.special,
    }


def read_optional(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is no such file."""
    return dict(read_json(path, error=ExportError, default={}))
