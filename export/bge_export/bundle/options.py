"""Options of an export that both exporters take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported, whatever it is.

    Attributes:
        force: Replace an existing bundle.
        trust_remote_code: Run code from the checkpoint. Decoders never need it.
        random_seed: Seed of the weights, if they are random.
    """

    force: bool = False
    trust_remote_code: bool = False
    random_seed: int | None = None


DEFAULT_OPTIONS = ExportOptions()
