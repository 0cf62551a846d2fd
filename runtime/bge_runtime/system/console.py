"""Whether somebody watches."""

from __future__ import annotations

import sys


def on_terminal() -> bool:
    """Tell whether standard error is a terminal; a service may have none at all."""
    return sys.stderr is not None and sys.stderr.isatty()
