"""A job over files beside encode: both do the work, in turns."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_bench.datasets.corpus import paragraphs


@pytest.mark.parametrize("heads", [(), ("--sparse", "--colbert")])
def test_a_job_and_encode_take_turns(
    heads: tuple[str, ...], tiny_bundle: Path, tiny_m3_bundle: Path, tmp_path: Path
):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(paragraphs(24)), "utf-8")
    result = CliRunner().invoke(
        main,
        [
            "bulk", str(tiny_m3_bundle if heads else tiny_bundle), "--texts", str(texts),
            "--rows", "2100", "--rounds", "2", "--folder", str(tmp_path),
            "--json", str(tmp_path / "bulk.json"), *heads,
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output

    document = json.loads((tmp_path / "bulk.json").read_text())
    for side in ("job", "encode"):
        assert sum(turn[side]["texts"] for turn in document["rounds"]) == 2100
        assert all(turn[side]["peak_memory_bytes"] > 10_000_000 for turn in document["rounds"])
    engines = [document["opened"][side]["engine"]["variant"] for side in ("job", "encode")]
    assert len(set(engines)) == 1
    assert document["parity"]["min_cosine"] > 0.998
    assert document["output_bytes"] > 2100 * 48 * 4
    assert "a job, Parquet to Parquet" in result.output
