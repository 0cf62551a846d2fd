"""The blocks of ``docs/coming-from``."""

from __future__ import annotations

import re
from pathlib import Path

from bge_bench.systems.base import quiet
from tests.helpers.guides import DOCS, blocks


def code_blocks() -> dict[str, str]:
    """Return the Python code for each tool, by its name."""
    found = {}
    for page in sorted((DOCS / "coming-from").glob("*.md")):
        title = page.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        for block in blocks(page):
            if block.language == "python":
                names = {"Embeddings": title, "Rerankers": f"Rerankers in {title}"}
                found[names.get(block.section, block.section)] = block.text
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
