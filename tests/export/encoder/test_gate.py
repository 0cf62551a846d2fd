"""The parity gate refuses graphs that are broken in the ways graphs get broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bge_runtime.errors import ExportError
from tests.helpers.bundles import export

REFUSED = "too far from PyTorch's vectors"


def test_gate_refuses_wrong_pooling(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_export.encoder import reference

    vectors = reference.compute_outputs

    def of_mean_pooling(encoder, token_ids):
        encoder.pooling = "mean"
        return vectors(encoder, token_ids)

    monkeypatch.setattr(reference, "compute_outputs", of_mean_pooling)
    with pytest.raises(ExportError, match=REFUSED):
        export(tiny_checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_gate_refuses_an_ignored_mask(
    tiny_checkpoint: Path, tmp_path: Path, pooling: str, monkeypatch: pytest.MonkeyPatch
):
    from bge_runtime.variants import parity_check

    def without_mask(rows, *, pad_token_id):
        ids, mask = pad_batch(rows, pad_token_id=pad_token_id)
        return ids, np.ones_like(mask)

    pad_batch = parity_check.pad_batch
    monkeypatch.setattr(parity_check, "pad_batch", without_mask)
    with pytest.raises(ExportError, match=REFUSED):
        export(tiny_checkpoint, tmp_path / "bundle", pooling=pooling)


def test_gate_refuses_swapped_layers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_export.encoder import exporter

    trace = exporter.trace

    def of_swapped_layers(wrapped, **options):
        layers = wrapped.encoder.encoder.layer
        layers[0], layers[1] = layers[1], layers[0]
        model = trace(wrapped, **options)
        layers[0], layers[1] = layers[1], layers[0]
        return model

    monkeypatch.setattr(exporter, "trace", of_swapped_layers)
    with pytest.raises(ExportError, match=REFUSED):
        export(tiny_checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize(
    "name", ["attention.self.query", "attention.self.key", "intermediate.dense", "token_type"]
)
def test_gate_refuses_one_changed_weight_matrix(
    tiny_checkpoint: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    # Seeded weights are only worth something if each of them shows in the vectors.
    from bge_export.encoder import reference

    vectors = reference.compute_outputs

    def of_changed_weights(encoder, token_ids):
        parameter = next(p for key, p in encoder.named_parameters() if name in key)
        right = parameter.clone()
        parameter.mul_(1.01)
        outputs = vectors(encoder, token_ids)
        parameter.copy_(right)  # the graphs share it, and are written later
        return outputs

    monkeypatch.setattr(reference, "compute_outputs", of_changed_weights)
    with pytest.raises(ExportError, match=REFUSED):
        export(tiny_checkpoint, tmp_path / "bundle")
