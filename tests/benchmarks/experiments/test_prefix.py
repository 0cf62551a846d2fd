"""bge-bench prefix computes the same in three ways, and says what was saved."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.errors import BenchError
from bge_bench.experiments.prefix import read_examples
from tests.helpers.decoders import export_decoder, write_tiny_decoder


def test_three_ways_give_the_same_vectors(tmp_path):
    checkpoint = write_tiny_decoder(tmp_path / "checkpoint", reads_examples=True)
    bundle = export_decoder(checkpoint, tmp_path / "bundle", model_class="decoder-only-icl")
    out = tmp_path / "out.json"
    options = ["--queries", "4", "--rounds", "1", "--precision", "fp32", "--json", str(out)]
    done = CliRunner().invoke(main, ["prefix", str(bundle), *options])
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert [pair["names"][1] for pair in document["pairs"]] == ["every token run", "FlagEmbedding"]
    for pair in document["pairs"]:
        assert pair["largest_difference"] < 1e-5
        assert len(pair["mine"]) == len(pair["other"]) == 1
    assert "tokens saved; 0 hits, 1 misses" in document["prefix_cache"]
    assert "cpu-fp32" in document["in_force"]


def test_an_encoder_has_no_prefix(tiny_bundle, tiny_checkpoint):
    command = ["prefix", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "is an encoder" in done.output


def test_examples_that_cannot_be_read(tmp_path):
    with pytest.raises(BenchError, match="cannot read"):
        read_examples(tmp_path / "none.json")
