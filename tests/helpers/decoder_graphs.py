"""Tiny decoders with transformers' vectors and their graphs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bge_export.checkpoint.safetensors import SafetensorsReader
from bge_export.decoder.config import DecoderConfig
from bge_export.decoder.external_data import write_external_data
from bge_export.decoder.graph import DecoderGraph
from bge_export.decoder.weights import find_weights, place_weights, plan_weights
from bge_runtime.bundle import SENTENCE_EMBEDDING, past_names
from tests.helpers.decoders import write_tiny_decoder

WIDE: dict[str, Any] = {
    "sliding_window": 24,
    "attn_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 50,
}
"""A window and a softcap that texts of 90 tokens exceed."""


class Decoder:
    """A tiny checkpoint, its vectors in transformers, and its graphs."""

    def __init__(
        self, folder: Path, name: str, *, write: Callable[..., Path] = write_tiny_decoder
    ) -> None:
        narrow: dict[str, dict[str, Any]] = {"gemma2": WIDE, "mistral": {"sliding_window": 24}}
        self.folder = write(folder, name, **narrow.get(name, {}))
        self.json = json.loads((folder / "config.json").read_text())
        self.config = DecoderConfig.from_json(self.json, source=name)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        self.reader = SafetensorsReader(folder, sorted(set(index["weight_map"].values())))
        self.found = find_weights(self.config, self.reader, source=name)

    def torch_vectors(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(
            self.folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        seen = torch.from_numpy(mask)
        if not self.config.causal:
            seen = seen[:, None, None, :].expand(-1, 1, ids.shape[1], -1).float()
            seen = (1 - seen) * torch.finfo(torch.float32).min
        with torch.no_grad():
            hidden = model(torch.from_numpy(ids), attention_mask=seen).last_hidden_state
        last = hidden[torch.arange(len(ids)), torch.from_numpy(mask).sum(1) - 1]
        return np.asarray(last.numpy())

    def session(self, config: DecoderConfig | None = None) -> Any:
        return self.opened(self.built(config))

    def built(
        self,
        config: DecoderConfig | None = None,
        *,
        form: type[DecoderGraph] = DecoderGraph,
        dtype: str = "FLOAT",
    ) -> Any:
        import onnx_ir as ir

        plans = plan_weights(self.config, self.found, storage=ir.DataType[dtype])
        data = self.folder / f"weights-{dtype}.onnx_data"
        if not data.exists():
            write_external_data(plans, self.reader, data)
        weights = place_weights(plans, folder=self.folder, location=data.name)
        return form(config or self.config, weights, dtype=ir.DataType[dtype]).build()

    def opened(self, model: Any) -> Any:
        import onnx_ir as ir
        import onnxruntime as ort

        path = self.folder / "model.onnx"
        ir.save(model, path)
        return ort.InferenceSession(str(path))

    def vectors(
        self,
        session: Any,
        ids: np.ndarray,
        mask: np.ndarray,
        past: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        return np.asarray(session.run([SENTENCE_EMBEDDING], self.feeds(ids, mask, past))[0])

    def feeds(
        self, ids: np.ndarray, mask: np.ndarray, past: Sequence[np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        config = self.config
        empty = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
        names = [n for layer in range(config.layers) for n in past_names(layer)]
        given = dict.fromkeys(names, empty) if past is None else dict(zip(names, past, strict=True))
        return {"input_ids": ids, "attention_mask": mask, **(given if config.causal else {})}


def batch(rows: int = 5, longest: int = 90, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and mask of texts of different lengths, padded on the right."""
    random = np.random.default_rng(seed)
    ids = random.integers(4, 8000, (rows, longest))
    mask = np.zeros_like(ids)
    for row, length in enumerate(np.linspace(longest, 1, rows).astype(int)):
        mask[row, :length] = 1
    return ids, mask


def write_overflowing(folder: Path, name: str = "gemma2", **config: Any) -> Path:
    """Write a decoder whose feed-forward products exceed the range of fp16."""
    from safetensors.torch import load_file, save_file

    checkpoint = write_tiny_decoder(folder, name, **config)
    (shard,) = checkpoint.glob("*.safetensors")
    tensors = load_file(shard)
    for part in ("gate_proj", "up_proj"):
        tensors[f"layers.1.mlp.{part}.weight"] *= 300
    save_file(tensors, shard)
    return checkpoint
