import json
import shutil

import pytest
from click.testing import CliRunner

from bge_bench.cli.main import main
from bge_runtime.sources import ModelSpec
from bge_runtime.system import nvidia
from bge_runtime.system.file_hash import file_sha256
from tests.helpers.bundles import TINY, export, write_tiny_bert


def run(*arguments):
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


def edit_provenance(bundle, **values):
    manifest = json.loads((bundle / "bge.json").read_text())
    manifest["provenance"].update(values)
    (bundle / "bge.json").write_text(json.dumps(manifest))


@pytest.fixture
def miswired_bundle(bundle_copy, tiny_mean_bundle):
    """A bundle that says cls, whose CPU graph takes the mean, and whose hashes agree."""
    name = "onnx/model_cpu_fp32.onnx"
    path = bundle_copy / name
    shutil.copy(tiny_mean_bundle / name, path)
    manifest = json.loads((bundle_copy / "bge.json").read_text())
    manifest["files"][name] = {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (bundle_copy / "bge.json").write_text(json.dumps(manifest))
    return bundle_copy


def test_every_variant_is_compared_with_both_references(tiny_bundle, tmp_path):
    file = tmp_path / "parity.json"
    result = run(tiny_bundle, "--json", file)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.count("pass\n") == 8
    document = json.loads(file.read_text())
    assert document["passed"] is True
    assert document["versions"]["FlagEmbedding"] == "1.4.2"
    assert document["hardware"]["usable_cpus"] >= 1
    assert {(row["call"], row["info"]["variant"]) for row in document["rows"]} == {
        ("FlagModel", "cpu-fp32"),
        ("padded", "cpu-fp32"),
        ("padded", "openvino-fp32"),
        ("padded", "portable-fp32"),
    }
    for row in document["rows"]:
        assert row["info"]["provider"] in ("CPUExecutionProvider", "OpenVINO CPU")
        assert row["parity"]["texts"] == document["texts"]["count"] > 40
        assert row["parity"]["error_share"] < row["tolerance"]["max_error_share"] / 100
    assert {row["reference"].split()[0] for row in document["rows"]} == {
        "transformers",
        "FlagEmbedding",
    }


def test_mean_pooling_follows_the_manifest(tiny_mean_bundle):
    result = run(tiny_mean_bundle, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"] is True


def test_a_graph_that_pools_differently_fails_and_no_other(miswired_bundle):
    result = run(miswired_bundle, "--json", "-")
    assert result.exit_code == 1
    verdicts = {
        (row["call"], row["info"]["variant"]): row["passed"]
        for row in json.loads(result.stdout)["rows"]
    }
    assert verdicts == {
        ("FlagModel", "cpu-fp32"): False,
        ("padded", "cpu-fp32"): False,
        ("padded", "openvino-fp32"): False,
        ("padded", "portable-fp32"): True,
    }


def test_a_failure_is_spelled_out_below_the_table(miswired_bundle):
    result = run(miswired_bundle, "--against", "transformers")
    assert result.exit_code == 1
    assert result.stdout.count("FAIL: ") == 3
    assert "error share" in result.stdout


def test_texts_of_ones_own_are_used(tiny_bundle, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("first text\nsecond text\na third, longer than the others\n")
    result = run(tiny_bundle, "--against", "transformers", "--texts", file, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"][0]["parity"]["texts"] == 3


def test_variants_of_a_gpu_are_left_to_a_machine_that_has_one(tiny_checkpoint, tmp_path):
    bundle = export(tiny_checkpoint, tmp_path / "bundle", targets=("cpu", "cuda"))
    result = run(bundle, "--against", "transformers", "--every-length", "--json", "-")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert {row["info"]["device"] for row in rows} == {"cpu"}
    assert rows[0]["parity"]["texts"] > 550
    if isinstance(nvidia.find_driver(), str):
        result = run(bundle, "--device", "cuda:0", "--against", "transformers")
        assert result.exit_code == 1
        assert "nothing of bundle runs on cuda:0: the installed onnxruntime" in result.stderr


def test_another_checkpoint_is_refused(tiny_bundle, tmp_path):
    other = write_tiny_bert(tmp_path / "other", seed=1)
    result = run(tiny_bundle, "--checkpoint", other)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "does not hold the weights of" in result.stderr
    assert "pass the checkpoint that the bundle was made from" in result.stderr


def test_a_checkpoint_with_another_tokenizer_is_refused(tiny_bundle, tiny_checkpoint, tmp_path):
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = "a", "b"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    result = run(tiny_bundle, "--checkpoint", other)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"the tokenizer of {other} is not that of {tiny_bundle.name}: of " in result.stderr
    assert "pass the checkpoint that the bundle was made from" in result.stderr


def test_a_checkpoint_that_is_gone_is_asked_for(bundle_copy, tmp_path):
    edit_provenance(bundle_copy, source=str(tmp_path / "gone"))
    result = run(bundle_copy)
    assert result.exit_code == 1
    assert str(tmp_path / "gone") in result.stderr
    assert "Pass --checkpoint DIR" in result.stderr


def test_a_folder_without_a_bundle_is_one_line(tmp_path):
    result = run(tmp_path / "nothing")
    assert result.exit_code == 1
    assert result.stderr.startswith("bge-bench: no bundle at")


class TestRandomWeights:
    @pytest.fixture(autouse=True)
    def _tiny_is_a_known_model(self, monkeypatch):
        facts = ModelSpec(hub_id="BAAI/tiny", shape=TINY)
        monkeypatch.setattr("bge_export.synthetic.find_random_model", lambda source: facts)

    def test_are_made_anew_from_the_seed(self, bundle_copy):
        edit_provenance(bundle_copy, source="tiny", random_seed=0)
        result = run(bundle_copy, "--against", "transformers", "--json", "-")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["checkpoint"]["random_seed"] == 0

    def test_that_come_out_differently_are_refused(self, bundle_copy):
        edit_provenance(bundle_copy, source="tiny", random_seed=1)
        result = run(bundle_copy)
        assert result.exit_code == 1
        assert "makes other random weights" in result.stderr
