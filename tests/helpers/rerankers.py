"""Tiny rerankers of both families of encoders, and their bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.helpers.bundles import TINY, export, make_once

SHAPES = {
    "bert": TINY,
    "xlm-roberta": replace(TINY, architecture="xlm-roberta", max_length=512),
    "long xlm-roberta": replace(TINY, architecture="xlm-roberta", max_length=1024),
}
"""As ms-marco-MiniLM, which reads token types; as bge-reranker-base; and as bge-reranker-v2-m3."""


def write_tiny_reranker(folder: Path, name: str = "bert", *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny reranker's checkpoint; ``changes`` are to its shape."""
    from bge_export.synthetic.encoder import (
        make_random_reranker,
        make_tokenizer,
        name_tokenizer_class,
    )

    shape = replace(SHAPES[name], **changes)
    make_random_reranker(shape, seed=seed).save_pretrained(folder)
    tokenizer = make_tokenizer(shape.vocab_size, shape.architecture, max_length=shape.max_length)
    tokenizer.save_pretrained(folder)
    name_tokenizer_class(folder, shape.architecture)
    return folder


def reranker_checkpoint(name: str = "bert") -> Path:
    """Return a tiny reranker's checkpoint, made once. Shared: copy it before changing it."""
    return make_once(f"tiny-reranker-{_slug(name)}", partial(write_tiny_reranker, name=name))


def reranker_bundle(name: str = "bert", *, targets: Sequence[str] = ("cpu", "portable")) -> Path:
    """Return a tiny reranker's bundle, made once; without targets it has every default graph.

    Shared: copy it before changing it. A test that calls this asks for the fixture ``made_once``.
    """
    kinds = "-".join(targets) or "default"
    make = partial(export, reranker_checkpoint(name), pooling=None, targets=targets)
    return make_once(f"tiny-reranker-{_slug(name)}-{kinds}-bundle", make)


def _slug(name: str) -> str:
    return name.replace(" ", "-")
