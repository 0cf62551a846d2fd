"""What ``FlagLLMModel`` and ``FlagICLModel`` share: last-token pooling, and prefixes."""

from __future__ import annotations

from functools import partial

from bge_runtime.encoding import TextTokenizer, TokenizationPlan
from bge_runtime.errors import PoolingError
from bge_runtime.models.instructions import explain_no_room, text_before_sentence

PREFIX_CACHE_MB = 1024
"""Default memory for prefixes: 4,096 tokens of a Mistral-7B."""


def plan_with_prefix(
    tokenizer: TextTokenizer,
    instruction: str | None,
    instruction_format: str | None,
    *,
    max_length: int,
    model_length: int,
) -> TokenizationPlan:
    """Return how texts become tokens, with those of their instruction as the prefix.

    Args:
        tokenizer: The model's tokenizer.
        instruction: The instruction in front of each text; None for no instruction.
        instruction_format: How it is put there.
        max_length: Maximum tokens of a text, instruction included.
        model_length: Maximum tokens that the model can read.

    Raises:
        ValueError: If the instruction leaves no token for the texts.
    """
    tokenize = partial(tokenizer.encode, max_length=max_length)
    if instruction is None or instruction_format is None:
        return TokenizationPlan(tokenize)
    before = text_before_sentence(instruction_format, instruction)
    room = max_length - tokenizer.special_tokens
    check_room(tokenizer, before, room=room, max_length=max_length, model_length=model_length)
    return TokenizationPlan(tokenize, tokenizer.encode_start(before))


def check_room(
    tokenizer: TextTokenizer, before: str, *, room: int, max_length: int, model_length: int
) -> None:
    """Check that an instruction leaves tokens for the text after it.

    The arguments are those of `bge_runtime.models.instructions.explain_no_room`.

    Raises:
        ValueError: If it leaves none.
    """
    reason = explain_no_room(
        tokenizer, before, room=room, max_length=max_length, model_length=model_length
    )
    if reason is not None:
        raise ValueError(reason)


def check_last_token(pooling_method: str | None) -> None:
    """Check that ``pooling_method`` is the one that decoders have.

    Raises:
        PoolingError: If it is another one.
    """
    if pooling_method not in (None, "last_token"):
        raise PoolingError(
            f"requested pooling_method={pooling_method!r}, but it must be 'last_token' for "
            "LLM-based models. Leave it out"
        )
