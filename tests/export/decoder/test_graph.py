"""A decoder's graph gives what transformers gives, with a past and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bge_export.decoder.config import DecoderConfig
from bge_runtime.bundle import SENTENCE_EMBEDDING, present_names
from bge_runtime.bundle.parity import compare
from bge_runtime.errors import ExportError
from tests.helpers.decoder_graphs import Decoder, batch
from tests.helpers.decoders import SHAPES, write_tiny_decoder


@pytest.fixture(scope="module", params=list(SHAPES))
def decoder(request, tmp_path_factory) -> Decoder:
    return Decoder(tmp_path_factory.mktemp(request.param), request.param)


def test_vectors_are_those_of_eager_attention(decoder: Decoder):
    ids, mask = batch()
    parity = compare(
        decoder.vectors(decoder.session(), ids, mask), decoder.torch_vectors(ids, mask)
    )
    assert parity.failures("fp32") == []


def test_a_past_stands_for_its_tokens(decoder: Decoder):
    if not decoder.config.causal:
        pytest.skip("attends in both directions: there is no past")
    ids, mask = batch()
    prefix = np.random.default_rng(1).integers(4, 8000, (1, 37))
    session = decoder.session()
    names = [name for layer in range(decoder.config.layers) for name in present_names(layer)]
    past = session.run(names, decoder.feeds(prefix, np.ones_like(prefix)))
    whole = np.concatenate([np.repeat(prefix, len(ids), 0), ids], axis=1)
    whole_mask = np.concatenate([np.ones((len(ids), 37), int), mask], axis=1)
    expected = decoder.torch_vectors(whole, whole_mask)
    parity = compare(decoder.vectors(session, ids, mask, past), expected)
    assert parity.failures("fp32") == []
    # Seen failing: a past that is not attended to.
    assert compare(decoder.vectors(session, ids, mask), expected).error_share > 0.1


def test_a_bidirectional_graph_has_no_past(tmp_path: Path):
    decoder = Decoder(tmp_path / "d", "qwen2-bidirectional")
    session = decoder.session()
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [value.name for value in session.get_outputs()] == [SENTENCE_EMBEDDING]


FEATURES = [
    ("gemma", "embed_scale", 1.0),
    ("gemma", "activation", "silu"),
    ("gemma2", "softcap", None),
    ("gemma2", "query_scale", 1.0),
    ("gemma2", "embed_scale", 1.0),
    ("gemma2", "windows", (None, None, None)),
    ("gemma2", "windows", (None, 24, None)),
    ("mistral", "windows", (None, None, None)),
    ("mistral", "windows", (25, 25, 25)),
    ("mistral", "rope_theta", 1e6),
    ("qwen2-bidirectional", "causal", True),
    ("qwen2", "rope_theta", 1e4),
]


@pytest.mark.parametrize(("name", "feature", "value"), FEATURES)
def test_each_feature_changes_the_vectors(tmp_path: Path, name: str, feature: str, value):
    decoder = Decoder(tmp_path / "d", name)
    ids, mask = batch()
    broken = decoder.session(replace(decoder.config, **{feature: value}))
    if feature == "causal":
        decoder.config = replace(decoder.config, causal=True)
    vectors = decoder.vectors(broken, ids, mask)
    decoder.config = DecoderConfig.from_json(decoder.json, source=name)
    parity = compare(vectors, decoder.torch_vectors(ids, mask))
    assert parity.failures("fp32") != []
    assert parity.error_share > 0.01


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
        {"sliding_window": None},
    ],
)
def test_windows_are_those_of_transformers(tmp_path: Path, name: str, changes: dict):
    if name == "qwen2-bidirectional":
        pytest.skip("both directions and a window are refused")
    from transformers import AutoConfig

    folder = write_tiny_decoder(tmp_path / "d", name, **changes)
    config = DecoderConfig.from_json(json.loads((folder / "config.json").read_text()), source="d")
    theirs = AutoConfig.from_pretrained(folder)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * config.layers
    # Gemma's classes keep the key and do not read it.
    window = None if name == "gemma" else theirs.sliding_window
    expected = [window if kind == "sliding_attention" else None for kind in kinds]
    assert list(config.windows) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "type 'llama'.*mistral"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "linear"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"hidden_size": None}, "incomplete or damaged"),
        ({"num_key_value_heads": 3}, "do not share 3 key heads"),
        ({"is_causal": False}, "both directions and within a window"),
    ],
)
def test_what_graphs_do_not_have_is_refused(tmp_path: Path, changes: dict, message: str):
    folder = write_tiny_decoder(tmp_path / "d", **changes)
    with pytest.raises(ExportError, match=message):
        DecoderConfig.from_json(json.loads((folder / "config.json").read_text()), source="d")


def test_transformers_5_style_rotary_parameters_are_read(tmp_path: Path):
    folder = write_tiny_decoder(tmp_path / "d")
    document = json.loads((folder / "config.json").read_text())
    theta = document.pop("rope_theta")
    document["rope_parameters"] = {"rope_type": "default", "rope_theta": theta * 3}
    assert DecoderConfig.from_json(document, source="d").rope_theta == theta * 3
