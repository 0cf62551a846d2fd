"""Fixtures of the exporter's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.bundles import keep_traces


@pytest.fixture(scope="session")
def traced(tiny_checkpoint: Path) -> Callable[[str], object]:
    """Return a copy of the tiny BERT's trace at opset 23, by pooling."""
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder import exporter
    from bge_export.encoder.load import load_encoder
    from bge_export.encoder.pooling import PooledEncoder

    keep_traces()
    made = {}

    def model(pooling: str):
        if pooling not in made:
            checkpoint = inspect_checkpoint(tiny_checkpoint, source="tiny", pooling=pooling)
            encoder = load_encoder(checkpoint)
            wrapped = PooledEncoder(encoder, pooling=pooling, token_types=True)
            made[pooling] = exporter.trace(wrapped, max_length=512)
        return made[pooling].clone()

    return model
