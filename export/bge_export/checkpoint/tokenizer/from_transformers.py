"""The tokenizer that the installed transformers makes of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bge_export.checkpoint.tokenizer.added_tokens import ROLES
from bge_export.checkpoint.tokenizer.tokenizer import SETTINGS_FILE, CheckpointTokenizer
from bge_export.library_output import hide_transformers_output, shorten
from bge_export.parity_texts import PARITY_TEXTS, TOKENIZER_TEXTS
from bge_runtime.bundle import TOKENIZER_FILE
from bge_runtime.errors import ExportError

logger = logging.getLogger("bge_export.checkpoint.tokenizer")


_MOST_SPECIAL_TOKENS = 64
"""Number of special tokens that are compared; some tokenizers reserve thousands."""


def load_with_transformers(
    folder: Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Load a tokenizer with the installed transformers.

    Raises:
        ExportError: If that fails, or it is not a fast tokenizer.
    """
    try:
        with hide_transformers_output():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exception
        raise ExportError(f"cannot load a tokenizer from {folder}: {shorten(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ExportError(
            f"{folder} has no fast tokenizer ({type(tokenizer).__name__} runs in Python only)"
        )
    return tokenizer


def convert_tokenizer(theirs: PreTrainedTokenizerFast) -> CheckpointTokenizer:
    """Return a transformers tokenizer as a `CheckpointTokenizer`."""
    names, additional = find_special_tokens(theirs)
    backend = theirs.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return CheckpointTokenizer(
        backend_tokenizer=backend,
        special_tokens=names,
        additional_special_tokens=additional,
        padding_side=theirs.padding_side,
        truncation_side=theirs.truncation_side,
        model_max_length=int(theirs.model_max_length),
        clean_up_tokenization_spaces=bool(theirs.clean_up_tokenization_spaces),
        gives_token_types="token_type_ids" in theirs.model_input_names,
    )


def find_special_tokens(theirs: PreTrainedTokenizerFast) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the special tokens by role, and those without a role."""
    tokens = {role: getattr(theirs, role, None) for role in ROLES}
    names = {role: str(token) for role, token in tokens.items() if token is not None}
    # transformers 5 has renamed the first to the second.
    others = [
        str(token)
        for key in ("additional_special_tokens", "extra_special_tokens")
        for token in getattr(theirs, key, None) or ()
    ]
    return names, tuple(dict.fromkeys(others))


def compare_with_transformers(
    ours: Tokenizer,
    theirs: PreTrainedTokenizerFast | ExportError,
    folder: Path,
    *,
    unknown: Sequence[str],
) -> None:
    """Log a warning if the installed transformers makes other token ids.

    Args:
        ours: Tokenizer made from the checkpoint's files.
        theirs: Tokenizer of transformers, or the reason why there is none.
        folder: The checkpoint.
        unknown: Settings and classes in it that are not supported here.

    Raises:
        ExportError: If token ids differ, and the checkpoint has something unsupported.
    """
    version = f"transformers {transformers.__version__}"
    taken = (
        f"The bundle's token ids are those of the checkpoint's own {TOKENIZER_FILE}, with what its "
        f"{SETTINGS_FILE} changes"
    )
    if isinstance(theirs, ExportError):
        logger.warning("%s %s. %s; they could not be compared", version, theirs, taken)
        return
    special = [token.content for token in ours.get_added_tokens_decoder().values()]
    within = [f"{token} a{token}b {token} c" for token in special[:_MOST_SPECIAL_TOKENS]]
    texts = [*PARITY_TEXTS, *TOKENIZER_TEXTS, *within]
    found = [encoding.ids for encoding in ours.encode_batch(texts)]
    try:
        with hide_transformers_output():
            expected = theirs(texts, padding=False, truncation=False)["input_ids"]
    except Exception as error:  # noqa: BLE001  # tokenizers raises bare Exception
        expected = [f"{type(error).__name__}: {shorten(error)}"] * len(texts)
    for text, own, other in zip(texts, found, expected, strict=True):
        if own == other:
            continue
        difference = (
            f"{version} tokenizes {text[:40]!r} as {_format_ids(other)}, where the files in "
            f"{folder} say {_format_ids(own)}"
        )
        if unknown:
            raise ExportError(
                f"{difference}; what {' and '.join(unknown)} of its {SETTINGS_FILE} changes is not "
                "known here. Take that out of a copy, with PreTrainedTokenizerFast as its "
                f"tokenizer_class, if the model was trained by what its {TOKENIZER_FILE} says"
            )
        logger.warning("%s. %s", difference, taken)
        return


def _format_ids(ids: Any) -> str:
    return ids if isinstance(ids, str) else f"[{', '.join(map(str, ids[:12]))}]"
