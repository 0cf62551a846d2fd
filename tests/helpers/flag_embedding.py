"""FlagEmbedding's vectors, and the texts that they are compared on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_bench.systems.base import SystemSpec, open_system
from bge_export.parity_texts import PARITY_TEXTS
from tests.helpers.bundles import SHARED


def flag_embedding(checkpoint: Path, texts: list[str], *, pooling: str) -> NDArray[np.float32]:
    """Return FlagEmbedding's vectors, in fp32 on the CPU, as the benchmarks compute them."""
    spec = SystemSpec(
        system="flagembedding", model=str(checkpoint), pooling=pooling, max_length=512, batch_size=4
    )
    return open_system(spec).encode(texts)


def real_texts(sentences: int, paragraphs: int) -> list[str]:
    """Return an even sample of real texts in four languages, if the checkout has them beside it."""

    def sample(rows: list[Any], count: int) -> list[Any]:
        return rows[:: max(1, len(rows) // count)]

    found: list[str] = []
    for path in sorted(SHARED.glob("text/stsb/*.csv")):
        with path.open(encoding="utf-8") as file:
            found += [row[0] for row in sample(list(csv.reader(file)), sentences)]
    for path in sorted(SHARED.glob("text/xquad/*/corpus.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [json.loads(line)["text"] for line in sample(lines, paragraphs)]
    return found


MANY_TEXTS = [*PARITY_TEXTS, *real_texts(sentences=10, paragraphs=5)]
"""The texts of the parity gate, and real ones."""
