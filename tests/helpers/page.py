"""The blocks of ``docs/coming-from/index.md``."""

from __future__ import annotations

import re
from pathlib import Path

from bge_bench.systems.base import quiet
from tests.helpers.bundles import ROOT

PAGE = ROOT / "docs" / "coming-from" / "index.md"


def code_blocks() -> dict[str, str]:
    """Return the Python code of each section, by its heading."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
        found[section.partition("\n")[0]] = code
    return found


def run(
    code: str, model: Path, *, reranker: Path | None = None, **scope: object
) -> dict[str, object]:
    """Run a block with the names of models replaced by folders.

    Args:
        code: The block.
        model: The folder.
        reranker: The folder of a block's second model.
        **scope: Variables that the block uses.

    Returns:
        The variables after the block has run.
    """
    code = re.sub(r'"BAAI/bge-reranker-base"', repr(str(reranker or model)), code)
    code = re.sub(r'"(BAAI/)?bge-base-en-v1\.5"', repr(str(model)), code)
    assert str(model) in code
    with quiet():
        exec(compile(code, "page", "exec"), scope)
    return scope
