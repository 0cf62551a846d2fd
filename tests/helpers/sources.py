"""What the source of a module says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def texts_of(path: Path, *, hole: str) -> Iterator[str]:
    """List the strings of a module, f-strings with ``hole`` for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    within = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else hole for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in within:
            yield str(node.value)
