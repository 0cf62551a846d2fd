"""What ``FlagLLMModel`` and ``FlagICLModel`` share."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from bge_runtime.encoding import PrefixCache
from bge_runtime.errors import PoolingError
from bge_runtime.models.base import text_before_sentence
from bge_runtime.models.dense import FlagDense
from bge_runtime.models.embedder import TokenizationPlan
from bge_runtime.sources import DECODER_CLASSES

PREFIX_CACHE_MB = 1024
"""Memory for prefixes, unless said otherwise: 4,096 tokens of a Mistral-7B."""


class FlagDecoder(FlagDense):
    """Language models whose last token stands for the text.

    Attributes:
        MODEL_CLASSES: Classes of the models that it opens.
    """

    MODEL_CLASSES: ClassVar[tuple[str, ...]] = DECODER_CLASSES

    @property
    def prefix_cache(self) -> PrefixCache:
        """What texts begin with, kept from call to call; its ``stats`` tell what that saved."""
        return self._prefixes

    def _reading(
        self, max_length: int, instruction: str | None, instruction_format: str | None
    ) -> TokenizationPlan:
        """Tell how texts are read that an instruction was put before.

        Raises:
            ValueError: If the instruction leaves no token for the texts.
        """
        length = self._readable_length(max_length, stacklevel=4)
        tokenize = partial(self.tokenizer.encode, max_length=length)
        if instruction is None or instruction_format is None:
            return TokenizationPlan(tokenize)
        before = text_before_sentence(instruction_format, instruction)
        self._check_room(before, room=length - self.tokenizer.special_tokens, max_length=length)
        return TokenizationPlan(tokenize, self.tokenizer.encode_start(before))

    def _check_room(self, before: str, *, room: int, max_length: int) -> None:
        """Check that an instruction leaves some of the tokens for what comes behind it.

        Raises:
            ValueError: If it does not.
        """
        filled = self._filled_by_instruction(before, room=room, max_length=max_length)
        if filled is not None:
            raise ValueError(filled)


def check_last_token(pooling_method: str | None) -> None:
    """Check ``pooling_method``, of which there is one.

    Raises:
        PoolingError: If it is another one.
    """
    if pooling_method not in (None, "last_token"):
        raise PoolingError(
            f"requested pooling_method={pooling_method!r}, but it must be 'last_token' for "
            "LLM-based models. Leave it out"
        )
