"""The parts of a model, for code that batches the texts of many calls itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from bge_runtime.bundle import Bundle
from bge_runtime.encoding import EngineSet, TextTokenizer, TokenizationPlan

TextKind = Literal["query", "passage"] | None
"""What texts are, and so which instruction is put before them; None for no instruction."""


class TextPlan(Protocol):
    """A function that tells how the texts of a request become tokens."""

    def __call__(self, *, kind: TextKind, max_length: int) -> TokenizationPlan:
        """Return the plan, which puts the instruction for queries or passages before texts.

        Raises:
            ValueError: If the instruction leaves no token for the text.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """What a model is made of.

    Attributes:
        bundle: The bundle.
        tokenizer: The tokenizer.
        engines: The engines.
        devices: Devices that share the work.
        vector_dtype: Type to which ``encode`` rounds dense vectors.
        text_plan: Tells how texts become tokens.
    """

    bundle: Bundle
    tokenizer: TextTokenizer
    engines: EngineSet
    devices: Sequence[str]
    vector_dtype: np.dtype[Any]
    text_plan: TextPlan
