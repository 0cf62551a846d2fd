"""What ``bge-bench`` says of BGE-M3."""

import json

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.datasets.corpus import paragraphs
from bge_bench.errors import BenchError
from bge_bench.experiments.speed import line_up
from bge_bench.systems.base import OURS, SystemSpec, open_system
from bge_runtime.bundle.bundle import Bundle
from bge_runtime.bundle.parity import compare
from tests.helpers.bundles import export


@pytest.fixture(scope="module")
def headless(tiny_m3_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("headless") / "bundle"
    return export(tiny_m3_checkpoint, folder, model_class="encoder-only-base")


@pytest.mark.parametrize("every", [False, True])
def test_flagembedding_is_asked_for_the_same_outputs(tiny_m3_bundle, tiny_m3_checkpoint, every):
    options = {"pooling": "cls", "max_length": 64, "batch_size": 4, "threads": 1}
    options["model_class"] = "encoder-only-m3"
    ours, theirs = (
        open_system(SystemSpec(system=system, model=str(folder), all_outputs=every, **options))
        for system, folder in ((OURS, tiny_m3_bundle), ("flagembedding", tiny_m3_checkpoint))
    )
    texts = ["a", *paragraphs(5)]
    assert not compare(ours.encode(texts), theirs.encode(texts)).failures("fp32")


def test_all_outputs_are_for_m3_and_flagembedding(tiny_bundle, tiny_m3_bundle, tmp_path):
    for folder, baseline in ((tiny_bundle, "flagembedding"), (tiny_m3_bundle, "transformers")):
        with pytest.raises(BenchError, match="--outputs all compares BGE-M3 with FlagEmbedding"):
            line_up(
                Bundle.open(folder), tmp_path, baselines=[baseline], baseline_batch_size=8,
                threads=1, all_outputs=True,
            )  # fmt: skip


def test_m3_end_to_end(tiny_m3_bundle, headless, tmp_path):
    file = tmp_path / "m3.json"
    arguments = ["m3", str(tiny_m3_bundle), "--headless", str(headless), "--passages", "40"]
    arguments += ["--rounds", "2", "--precision", "fp32", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    pairs = json.loads(file.read_text())["pairs"]
    assert [pair["names"] for pair in pairs] == [
        ["bge-runtime, into dicts", "FlagEmbedding, into dictionaries"],
        ["bge-runtime, into csr", "FlagEmbedding, into dictionaries"],
        ["bge-runtime", "FlagEmbedding"],
        ["dense alone", "without heads"],
        ["all outputs", "dense alone"],
    ]
    assert all(pair["largest_difference"] < 1e-5 for pair in pairs)
    assert "cpu-fp32" in pairs[-1]["what"]
