"""Search the paragraphs of a folder of text files.

    python search_folder.py MODEL FOLDER "how do heat pumps work?" "which grain is hardy?"

It embeds each paragraph of each `.txt` and `.md` file below FOLDER, and prints the three nearest
ones of each query, with their similarity and file. Needs `pip install 'bge-runtime[cpu]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from bge_runtime import FlagAutoModel

FOUND = 3


def read_paragraphs(folder: Path) -> list[tuple[Path, str]]:
    """Return each paragraph below a folder, with the file that it is in."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".txt"))
    return [
        (path, paragraph.strip())
        for path in files
        for paragraph in path.read_text("utf-8", errors="replace").split("\n\n")
        if paragraph.strip()
    ]


def main(model_name: str, folder: str, *queries: str) -> None:
    """Embed the paragraphs and the queries, and print what is found."""
    paragraphs = read_paragraphs(Path(folder))
    if not paragraphs:
        sys.exit(f"{folder} has no text")
    # FlagAutoModel adds the instruction that the model's authors recommend for queries.
    model = FlagAutoModel.from_finetuned(model_name)
    passages = model.encode_corpus([text for _, text in paragraphs])
    similarities = model.encode_queries(list(queries)) @ passages.T  # vectors have unit length
    for query, row in zip(queries, similarities, strict=True):
        print(query)
        for index in np.argsort(-row)[:FOUND]:
            path, text = paragraphs[index]
            print(f"  {row[index]:.3f}  {path.relative_to(folder)}: {' '.join(text.split())[:70]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
