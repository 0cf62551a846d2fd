"""Checkpoints as sentence-transformers publishes them, for the tools that read those."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny BERT's checkpoint as BAAI publishes: [CLS] pooling, unit length."""
    folder = tmp_path_factory.mktemp("published") / "bge-small-en-v1.5"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copytree(tiny_bundle / "1_Pooling", folder / "1_Pooling")
    for name in ("modules.json", "sentence_bert_config.json"):
        shutil.copy(tiny_bundle / name, folder / name)
    return folder
