"""Write the files that make a bundle a sentence-transformers folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, normalizers

from bge_export.checkpoint import (
    MODULES_FILE,
    POOLING_MODES,
    PROMPTS_FILE,
    TRANSFORMER_FILES,
    Checkpoint,
)
from bge_runtime.bundle import SentenceTransformersSettings
from bge_runtime.errors import ExportError

if TYPE_CHECKING:
    from bge_export.checkpoint.tokenizer import CheckpointTokenizer


def complete_settings(
    checkpoint: Checkpoint, tokenizer: CheckpointTokenizer, *, max_length: int
) -> SentenceTransformersSettings:
    """Complete a folder's settings with what its tokenizer and model decide.

    Args:
        checkpoint: The checkpoint with the settings that its folder holds.
        tokenizer: Its tokenizer.
        max_length: Most tokens that its model reads.

    Raises:
        ExportError: If FlagEmbedding and sentence-transformers would read texts differently, and
            nothing says which one is right.
    """
    settings = checkpoint.sentence_transformers
    length = settings.max_seq_length
    if length is None:  # as sentence-transformers does
        positions = int(checkpoint.config.get("max_position_embeddings", max_length))
        length = min(tokenizer.model_max_length, positions)
    lowercase = settings.lowercase and _differs_in_lowercase(tokenizer.backend_tokenizer)
    if lowercase and not checkpoint.published:
        raise ExportError(
            f"{checkpoint.source} asks for lowercase texts (do_lower_case in its "
            f"{TRANSFORMER_FILES[0]}), and its tokenizer keeps capital letters. "
            "sentence-transformers follows that and FlagEmbedding does not, so their vectors "
            "differ. If texts are to be lowercased, let the tokenizer do it: "
            '{"type": "Lowercase"} first in the normalizer of its tokenizer.json, and for BERT '
            '"do_lower_case": true in its tokenizer_config.json. If not, set do_lower_case to '
            f"false in {TRANSFORMER_FILES[0]}"
        )
    prompts = dict(settings.prompts)
    if checkpoint.query_instruction and not prompts.get("query"):
        # A prompt is everything that precedes a query.
        prompts["query"] = checkpoint.query_instruction_format.format(
            checkpoint.query_instruction, ""
        )
    return replace(
        settings, max_seq_length=min(length, max_length), lowercase=lowercase, prompts=prompts
    )


def write_folder(
    draft: Path, settings: SentenceTransformersSettings, *, pooling: str, dim: int
) -> None:
    """Write the files that make a bundle a sentence-transformers folder.

    The keys are those of versions before 5.4, which TEI reads and newer versions accept.
    """
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if settings.normalize:
        kinds.append(("Normalize", "2_Normalize"))
    documents: dict[str, Any] = {
        MODULES_FILE: [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (kind, path) in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": dim,
            **{key: mode == pooling for key, mode in POOLING_MODES.items()},
        },
        TRANSFORMER_FILES[0]: {
            "max_seq_length": settings.max_seq_length,
            "do_lower_case": settings.lowercase,
        },
        PROMPTS_FILE: {
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": settings.similarity,
            **({"truncate_dim": settings.truncate_dim} if settings.truncate_dim else {}),
        },
    }
    for name, document in documents.items():
        path = draft / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _differs_in_lowercase(tokenizer: Tokenizer) -> bool:
    """Return whether lowercasing changes the tokens of any character."""
    lower = normalizers.Lowercase()
    cased = [char for char in _characters() if char.lower() != char]
    as_is = tokenizer.encode_batch_fast(cased, add_special_tokens=False)
    lowered = tokenizer.encode_batch_fast(
        [lower.normalize_str(char) for char in cased], add_special_tokens=False
    )
    return any(a.ids != b.ids for a, b in zip(as_is, lowered, strict=True))


def _characters() -> Iterable[str]:
    surrogates = range(0xD800, 0xE000)
    return (chr(code) for code in range(sys.maxunicode + 1) if code not in surrogates)
