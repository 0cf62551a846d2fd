"""Options of an export that both exporters take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ProgressCallback = Callable[[str], None]
"""Called before each step with a short description of it."""


def _ignore(_message: str) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported, whatever it is.

    Attributes:
        force: Replace an existing bundle.
        trust_remote_code: Run code from the checkpoint. Decoders never need it.
        random_seed: Seed of the weights, if they are random.
        step: Called before each step.
    """

    force: bool = False
    trust_remote_code: bool = False
    random_seed: int | None = None
    step: ProgressCallback = _ignore


DEFAULT_OPTIONS = ExportOptions()
