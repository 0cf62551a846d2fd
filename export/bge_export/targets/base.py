"""What encoders' and decoders' targets have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class TargetVariant(NamedTuple):
    """A way to run a target's graph, which becomes a variant of the bundle."""

    name: str
    engine: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A graph that an export can write.

    Attributes:
        name: Its name in ``--target``.
        precision: Its name in ``--precision``.
        file: Path of the graph inside the bundle.
        variants: Ways to run it.
        device: Kind of device it is for.
        description: One line for the table in ``--help``.
        on_request: Whether it is written only if its name or precision is passed.
    """

    name: str
    precision: str
    file: str
    variants: tuple[TargetVariant, ...]
    device: str
    description: str
    on_request: bool = False
