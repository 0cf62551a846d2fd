"""The texts from which scales are chosen, in many languages and of all lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bge_export.parity_pairs import PARITY_PAIRS
from bge_runtime.encoding import TextTokenizer

CALIBRATION_SEED = 0
"""Seed of everything that is random in a calibration."""

_JOINED = (2, 3, 4, 6, 8, 12, 16, 24, 32) * 3
"""Texts that are joined to a longer one."""


def calibration_texts() -> list[str]:
    """Return texts in many languages, from a word to several hundred.

    None of them is a text on which the parity gate compares vectors.
    """
    parts = list(dict.fromkeys(part for pair in PARITY_PAIRS for part in pair if part))
    generator = np.random.default_rng(CALIBRATION_SEED)
    short = [part for part in parts if len(part) < 200]
    joined = [" ".join(generator.choice(short, size=count, replace=False)) for count in _JOINED]
    return [*parts, *joined]


def calibration_tokens(tokenizer: TextTokenizer, *, max_length: int) -> Sequence[NDArray[np.int64]]:
    """Return the tokens of `calibration_texts`, without texts that have the same ones."""
    tokens = tokenizer.encode(calibration_texts(), max_length=max_length)
    return list({ids.tobytes(): ids for ids in tokens}.values())
