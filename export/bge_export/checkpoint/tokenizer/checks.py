"""Refuse tokenizers that a bundle cannot hold, or that do not fit their model."""

from __future__ import annotations

from pathlib import Path

from bge_export.checkpoint.tokenizer.tokenizer import CheckpointTokenizer
from bge_export.parity_texts import PARITY_TEXTS
from bge_runtime.bundle import TOKENIZER_FILE
from bge_runtime.encoding import special_tokens_around
from bge_runtime.errors import BundleError, ExportError


def check_vocabulary(tokenizer: CheckpointTokenizer, rows: int, *, source: str) -> None:
    """Check that every token has an embedding. The parity texts may not contain all tokens.

    Raises:
        ExportError: If a token has none.
    """
    beyond = sorted(token for token, number in tokenizer.vocabulary.items() if number >= rows)
    if beyond:
        raise ExportError(
            f"the tokenizer of {source} knows {len(beyond)} tokens that its model has no embedding "
            f"for, such as {beyond[0]!r}: its vocabulary is of {rows}. Give the model embeddings "
            "for them (resize_token_embeddings, and training), or pass the tokenizer that it was "
            "trained with"
        )


def check_token_types(tokenizer: CheckpointTokenizer, *, source: str) -> None:
    """Check that all token types are 0, as they are in the graphs.

    Raises:
        ExportError: If they are not.
    """
    if not tokenizer.gives_token_types:
        return
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(PARITY_TEXTS)):
        if any(encoding.type_ids):
            raise ExportError(
                f"the tokenizer of {source} assigns a text the token types "
                f"{encoding.type_ids[:8]}, and this version exports models whose token types are "
                f"all 0. If it was trained with 0, write that as each type_id of post_processor's "
                f'"single" in a copy of its {TOKENIZER_FILE}'
            )


def check_pairs(tokenizer: CheckpointTokenizer, *, token_types: bool, source: str) -> None:
    """Check that a tokenizer joins pairs as FlagEmbedding does, by the class of BERT or RoBERTa.

    Args:
        tokenizer: The tokenizer.
        token_types: Whether its model reads token types.
        source: What the user called the checkpoint.

    Raises:
        ExportError: If it puts nothing between the texts, or gives both the same token type.
    """
    backend = tokenizer.backend_tokenizer
    alone, pair = (backend.num_special_tokens_to_add(is_pair=each) for each in (False, True))
    types = set(backend.encode("a", "b").type_ids)
    if pair <= alone or (token_types and types != {0, 1}):
        what = "puts no special token between" if pair <= alone else "gives one token type to"
        raise ExportError(
            f"the tokenizer of {source} {what} the texts of a pair, unlike those of BERT and "
            f'RoBERTa. Correct "pair" of post_processor in a copy of its {TOKENIZER_FILE}, as in '
            "the model that it was fine-tuned from"
        )


def check_tokenizer(tokenizer: CheckpointTokenizer, folder: Path, *, right_padding: bool) -> None:
    """Check that the runtime can use a tokenizer as it is.

    Raises:
        ExportError: If it cannot.
    """
    try:
        special_tokens_around(tokenizer.backend_tokenizer)
    except BundleError as error:
        raise ExportError(f"the tokenizer of {folder} cannot be exported: {error}") from error
    if tokenizer.special_tokens.get("pad_token") is None:
        raise ExportError(f"the tokenizer of {folder} has no padding token")
    wrong_side = right_padding and tokenizer.padding_side != "right"
    if wrong_side or tokenizer.truncation_side != "right":
        raise ExportError(
            f"the tokenizer of {folder} pads on the {tokenizer.padding_side} and truncates on "
            f"the {tokenizer.truncation_side}; here it is done on the right"
        )
    dropout = getattr(tokenizer.backend_tokenizer.model, "dropout", None)
    if dropout:
        raise ExportError(
            f"the tokenizer of {folder} leaves out merges at random (dropout {dropout} of its "
            f"model), as for training; set it to null in a copy of its {TOKENIZER_FILE}"
        )
