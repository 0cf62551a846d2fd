"""Tiny decoders that rerank, with tokenizers that are built as Gemma's and Qwen3's are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_runtime.sources import RERANKER_DECODER
from tests.helpers.bundles import make_once
from tests.helpers.decoders import SHAPES, export_decoder

NAMES = {"gemma": "bge-reranker-v2-gemma", "qwen3": "Qwen3-Reranker-0.6B"}
"""Names of published models, which tell class and prompt."""

_ASKED = (
    "Yes No yes no Given a query A and a passage B, determine whether the passage contains an "
    "answer to the query by providing a prediction of either. Judge whether the Document meets the "
    "requirements based on the Query and the Instruct provided. Note that the answer can only be. "
    "Given a web search query, retrieve relevant passages that answer the query"
)
_WORDS = re.findall("[A-Za-z]+", _ASKED)

_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>")
_QWEN3 = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")


def write_tiny_reranker(root: Path, name: str = "gemma", *, seed: int = 0, **config: Any) -> Path:
    """Write a tiny reranker's checkpoint into a folder of its published name.

    Args:
        root: Folder in which that one is made.
        name: One of `NAMES`.
        seed: Seed of its weights.
        config: Goes over its ``config.json``.
    """
    from bge_export.synthetic.decoder import write_random_decoder

    folder = root / NAMES[name]
    folder.mkdir(parents=True)
    shape = replace(SHAPES[name], vocab_size=2048)
    write_random_decoder(shape, folder, seed=seed, answers=True)
    make_tokenizer(name).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def export_tiny_reranker(root: Path, name: str = "gemma", **options: Any) -> Path:
    """Write a tiny reranker and export it. ``options`` are `export_decoder`'s."""
    return export_decoder(write_tiny_reranker(root, name), root / "bundle", **options)


def asked_by_flag_embedding(name: str = "gemma") -> Path:
    """Return a folder with a tiny reranker's checkpoint and bundle, made once.

    It is asked as FlagEmbedding asks, also Qwen3. A test that calls this asks for the fixture
    ``made_once``.
    """

    def make(root: Path) -> None:
        # Another name than the published one, which would tell another prompt.
        checkpoint = write_tiny_reranker(root, name).rename(root / "checkpoint")
        export_decoder(checkpoint, root / "bundle", model_class=RERANKER_DECODER)

    return make_once(f"asked-by-flagembedding-{name}", make)


def make_tokenizer(name: str) -> Any:
    """Return a tokenizer of a few English words, and of the bytes of all other texts."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if name == "gemma":
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        letters = [chr(code) for code in range(0x20, 0x7F)]
        pieces, merges = _merge(letters, (word for w in _WORDS for word in (w, f"▁{w}")))
        vocabulary = _number([*_GEMMA, *fallback, "\n", "▁", *letters, *pieces])
        model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
        )
        special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
        tokenizer.add_special_tokens(list(_GEMMA))
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", padding_side="left", **special
        )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = _merge(letters, (word for w in _WORDS for word in (w, f"Ġ{w}")))
    tokenizer = Tokenizer(models.BPE(_number([*letters, *pieces, *_QWEN3]), merges))
    tokenizer.normalizer = normalizers.NFC()
    # As in Qwen's, a space belongs to the word behind it, and newlines are alone.
    words = Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(list(_QWEN3))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )


def _merge(letters: Iterable[str], words: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return pieces and merges that make a token of each word, and of its beginnings."""
    pieces = dict.fromkeys(letters)
    made, merges = [], []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces[word[:end]] = None
                made.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return made, merges


def _number(tokens: Iterable[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}
