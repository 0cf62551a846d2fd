"""Checkpoints and bundles that the tests share; the first worker makes each for all."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bge_runtime.sources import RERANKER_ENCODER, BertShape

ROOT = Path(__file__).parents[2]
"""The checkout."""

SHARED = ROOT.parent / "shared" / "data"
"""Real configurations, tokenizers and texts, where a checkout has them beside it."""


TINY = BertShape(layers=3, hidden_size=48, heads=4, intermediate_size=96, vocab_size=9000)


MADE_ONCE = "BGE_TESTS_MADE_ONCE"
"""Environment variable that names the folder of what one worker makes for all. If it is set, the
next run of the tests finds it as well, such as the one without PyTorch (`make pythons`)."""


WITH_PYTORCH = importlib.util.find_spec("torch") is not None


LARGEST_TRACE_BYTES = 2**28
"""Largest weights of a trace that is kept: a protobuf file holds less than 2 GiB."""


TINY_M3 = replace(TINY, architecture="xlm-roberta", max_length=1024)


def write_tiny_m3(
    folder: Path, *, seed: int = 0, colbert_dim: int | None = None, **changes: Any
) -> Path:
    """Write a tiny XLM-RoBERTa checkpoint with M3's heads; ``changes`` are to its shape."""
    from bge_export.synthetic.encoder import make_random_encoder, make_tokenizer, write_random_heads

    shape = replace(TINY_M3, **changes)
    make_random_encoder(shape, seed=seed).save_pretrained(folder)
    tokenizer = make_tokenizer(shape.vocab_size, shape.architecture, max_length=shape.max_length)
    tokenizer.save_pretrained(folder)
    write_random_heads(folder, shape.hidden_size, seed=seed, colbert_dim=colbert_dim)
    return folder


def write_tiny_bert(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny BERT checkpoint with random weights of a realistic spread.

    ``changes`` are to its shape. A test that works with one layer should ask for one: that takes
    less time to trace.
    """
    from bge_export.synthetic.encoder import make_random_encoder, make_tokenizer

    make_random_encoder(replace(TINY, **changes), seed=seed).save_pretrained(folder)
    make_tokenizer(TINY.vocab_size).save_pretrained(folder)
    return folder


def make_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a file or folder that the first worker makes, and that later ones wait for."""
    root = Path(os.environ[MADE_ONCE])
    path, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            if not WITH_PYTORCH:
                pytest.skip(f"{name} is made with PyTorch, which is not installed")
            make(path)
            done.touch()
    return path


@functools.cache
def keep_traces() -> None:
    """Patch the exporter so that one worker traces an encoder for all.

    Tracing takes most of the time of an export: 10 s for a tiny model on a slow machine. The worker
    that traced continues with its own trace, as an export does; all others read the saved one.
    """
    import onnx_ir as ir

    from bge_export.encoder import exporter

    def keeping(trace: Callable[..., Any]) -> Callable[..., Any]:
        def traced(wrapped: Any, **options: Any) -> Any:
            facts = [
                trace.__name__, wrapped.encoder.config.to_json_string(), wrapped.pooling, options
            ]  # fmt: skip
            key = hashlib.sha256(repr(facts).encode())
            size_bytes = 0
            for name, tensor in wrapped.state_dict().items():
                # An embedder's pooler is no part of a trace, and random where a file lacks it.
                if wrapped.scorer is not None or ".pooler." not in name:
                    key.update(name.encode() + tensor.numpy().tobytes())
                    size_bytes += tensor.nbytes
            if size_bytes > LARGEST_TRACE_BYTES:
                return trace(wrapped, **options)
            traces: list[Any] = []

            def write(path: Path) -> None:
                traces.append(trace(wrapped, **options))
                ir.save(traces[0], path)

            path = make_once(f"{key.hexdigest()}.onnx", write)
            return traces[0] if traces else ir.load(path)

        return traced

    for name in ("trace", "trace_packed"):
        setattr(exporter, name, keeping(getattr(exporter, name)))


def export(
    checkpoint: Path,
    output: Path,
    *,
    pooling: str | None = "cls",
    targets: Sequence[str] = ("cpu", "portable"),
    precisions: Sequence[str] = (),
    model_class: str | None = None,
    progress: Any = None,
    **options: Any,
) -> Path:
    """Export an encoder in this process, by default to graphs in fp32."""
    keep_traces()
    from bge_export.bundle import NO_PROGRESS, ExportOptions
    from bge_export.checkpoint.inspect import inspect_checkpoint
    from bge_export.encoder.exporter import export_encoder
    from bge_export.targets import select_encoder_targets

    inspected = inspect_checkpoint(
        checkpoint, source=str(checkpoint), pooling=pooling, model_class=model_class
    )
    scores = inspected.model_class == RERANKER_ENCODER
    selected = select_encoder_targets(targets, precisions, scores=scores)
    export_encoder(inspected, output, selected, ExportOptions(**options), progress or NO_PROGRESS)
    return output
