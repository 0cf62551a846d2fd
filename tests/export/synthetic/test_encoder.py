"""Seeded checkpoints: whole, repeatable, and never mistaken for the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bge_export.synthetic.encoder import (
    find_random_model,
    make_random_encoder,
    make_tokenizer,
    write_random_checkpoint,
)
from bge_runtime.errors import ExportError
from bge_runtime.sources import MODELS
from tests.helpers.bundles import TINY


def test_eighteen_models_have_a_shape():
    names = [name for name, facts in MODELS.items() if facts.shape]
    assert len(names) == 18
    assert {"bge-m3", "bge-en-icl", "bge-multilingual-gemma2"} < set(names)
    assert find_random_model("BAAI/bge-large-zh").shape == find_random_model(names[5]).shape


def test_other_names_are_refused_with_the_list():
    with pytest.raises(ExportError, match=r"bge-small-en-v1\.5.*not thenlper/gte-large"):
        find_random_model("thenlper/gte-large")


@pytest.mark.parametrize("name", ["bge-base-en-v1.5", "bge-base-en", "bge-small-zh-v1.5"])
def test_shapes_are_the_published_ones(shared_data: Path, name: str):
    import json

    config = json.loads((shared_data / "models" / name / "config.json").read_text())
    shape = MODELS[name].shape
    assert shape is not None
    assert (
        shape.layers,
        shape.hidden_size,
        shape.heads,
        shape.intermediate_size,
        shape.vocab_size,
    ) == tuple(
        config[key]
        for key in (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
        )
    )


def test_same_seed_gives_the_same_weights():
    import torch

    one, same, other = (make_random_encoder(TINY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("size", [21128, 30522])
def test_made_tokenizer_has_the_size_and_knows_text(size: int):
    tokenizer = make_tokenizer(size)
    assert len(tokenizer) == size
    ids = tokenizer("The quick brown fox! 你好，世界")["input_ids"]
    assert ids[0] == 101
    assert ids[-1] == 102
    assert 100 not in ids[1:-1]  # no unknown token


def test_tokenizer_with_too_many_ids_is_refused(tmp_path: Path):
    make_tokenizer(30522).save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ExportError, match="pass a tokenizer of the same family"):
        write_random_checkpoint(
            MODELS["bge-small-zh"], tmp_path, seed=0, tokenizer=tmp_path / "tokenizer"
        )
