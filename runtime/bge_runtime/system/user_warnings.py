"""Warnings that name the line of the user's code which they are about."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])
_COMMANDS = str(Path(_PACKAGE, "cli"))


def warn_user(message: str) -> None:
    """Warn about the innermost call that comes from outside this package, or from a command."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001  # as pandas' find_stack_level does
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE) or file.startswith(_COMMANDS):
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
