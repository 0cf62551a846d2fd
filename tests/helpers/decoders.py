"""Tiny decoders of every family, for tests on both sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_runtime.sources import DecoderShape

MISTRAL = DecoderShape(
    architecture="mistral", layers=3, hidden_size=64, heads=4, kv_heads=2, head_dim=16,
    intermediate_size=160, vocab_size=9000, max_length=2048, rms_norm_eps=1e-5,
)  # fmt: skip

SHAPES = {
    "mistral": MISTRAL,
    "gemma": replace(MISTRAL, architecture="gemma", kv_heads=1, head_dim=32, rms_norm_eps=1e-6),
    "gemma2": replace(MISTRAL, architecture="gemma2", head_dim=32, rms_norm_eps=1e-6),
    "qwen2": replace(MISTRAL, architecture="qwen2", rope_theta=1e6),
    "qwen2-bidirectional": replace(MISTRAL, architecture="qwen2", rope_theta=1e6, causal=False),
    "qwen3": replace(MISTRAL, architecture="qwen3", head_dim=32, rope_theta=1e6),
}
"""One of each family, and one that attends in both directions."""


def write_tiny_decoder(
    folder: Path,
    name: str = "mistral",
    *,
    seed: int = 0,
    shape: DecoderShape | None = None,
    reads_examples: bool = False,
    **config: Any,
) -> Path:
    """Write a tiny decoder's checkpoint; ``config`` goes over its ``config.json``.

    With ``reads_examples`` its tokenizer is as bge-en-icl's, else as bge-multilingual-gemma2's.
    """
    from bge_export.synthetic.decoder import write_random_decoder
    from bge_export.synthetic.encoder import make_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    shape = shape or SHAPES[name]
    write_random_decoder(shape, folder, seed=seed)
    tokenizer = make_tokenizer(shape.vocab_size, shape.architecture, reads_examples=reads_examples)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def export_decoder(
    checkpoint: Path,
    output: Path,
    *,
    targets: tuple[str, ...] = (),
    precisions: tuple[str, ...] = (),
    model_class: str | None = None,
    **options: Any,
) -> Path:
    """Export a decoder in this process."""
    from bge_export.bundle import ExportOptions
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.decoder import exporter
    from bge_export.targets import select_decoder_targets

    inspected = inspect_checkpoint(checkpoint, source=str(checkpoint), model_class=model_class)
    graphs = select_decoder_targets(targets, precisions)
    exporter.export_decoder(inspected, output, graphs, ExportOptions(**options))
    return output
