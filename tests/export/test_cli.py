"""``bge-export`` as a command: options, messages, exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tqdm import tqdm

from bge_export.cli import main
from bge_runtime import FlagModel
from bge_runtime.bundle import Bundle
from bge_runtime.system import nvidia
from tests.helpers.bundles import keep_traces, write_tiny_bert, write_tiny_m3
from tests.helpers.decoders import write_tiny_decoder
from tests.helpers.rerankers import reranker_checkpoint


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_local_checkpoint(tiny_checkpoint: Path, tmp_path: Path):
    output = tmp_path / "bundle"
    result = run(tiny_checkpoint, "--pooling", "cls", "--output", output)
    assert result.exit_code == 0, result.output
    for word in ("min cosine", "error/distance", "cpu-fp32 on CPUExecutionProvider", "bge-embed"):
        assert word in result.stdout
    assert "tracing the graph" in result.stderr
    again = run(tiny_checkpoint, "--pooling", "cls", "--output", output)
    assert again.exit_code == 1
    assert "is a bundle already; pass --force" in again.stderr


def test_a_reranker_is_measured_on_pairs(made_once: Callable[..., Path], tmp_path: Path):
    keep_traces()
    output = tmp_path / "bundle"
    result = run(reranker_checkpoint("bert"), "--target", "portable", "--output", output)
    assert result.exit_code == 0, result.output
    for word in ("rank correlation", "error/difference", "bge-rerank", '"passages": ["one"'):
        assert word in result.stdout
    for option, message in (
        (("--pooling", "mean"), "--pooling mean is for embedders"),
        (("--model-class", "encoder-only-base"), "Open it with FlagReranker"),
        (("--target", "cuda-even"), "requested --target cuda-even"),
    ):
        refused = run(reranker_checkpoint("bert"), *option, "--output", tmp_path / "no")
        assert refused.exit_code == 1
        assert message in refused.stderr


def test_a_reranker_with_random_weights_is_made_by_name(tmp_path: Path):
    name = "ms-marco-MiniLM-L6-v2"
    options = ("--random-weights", "--layers", "1", "--target", "portable", "--json")
    result = run(name, *options, "--output", tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    (report,) = json.loads(result.stdout)["rows"]
    assert report["parity"]["max_error"] < 1e-4
    assert report["parity"]["rank_correlation"] == 1
    model = Bundle.open(tmp_path / "bundle").manifest.model
    assert (model.name, model.layers, model.dim) == (f"{name}-random", 1, 384)


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_tiny_bert, ["--pooling", "cls", "--target", "cpu"]),
        # Traced a second time, without padding.
        (write_tiny_bert, ["--pooling", "cls", "--target", "cuda"]),
        # M3 has fewer variants of this graph than other encoders.
        (write_tiny_m3, ["--model-class", "encoder-only-m3", "--target", "int8"]),
        (write_tiny_decoder, ["--model-class", "decoder-only-base"]),
        # These graphs have a variant in common.
        (write_tiny_decoder, ["--model-class", "decoder-only-base", "--target", "cpu"]),
    ],
)
def test_the_progress_bar_ends_at_its_total(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], Path],
    options: list[str],
):
    class Bar(tqdm):  # type: ignore[type-arg, unused-ignore]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments | {"disable": False})
            bars.append(self)

    bars: list[Bar] = []
    monkeypatch.setattr("bge_export.cli.tqdm", Bar)
    keep_traces()
    result = run(write(tmp_path / "checkpoint"), "--output", tmp_path / "bundle", *options)
    assert result.exit_code == 0, result.output
    (bar,) = bars
    assert bar.n == bar.total


def test_json_is_all_that_is_printed(tiny_checkpoint: Path, tmp_path: Path):
    result = run(
        tiny_checkpoint, "--pooling", "mean", "--output", tmp_path / "b", "--json",
        "--target", "portable",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["graph"] == "onnx/model.onnx"
    assert row["parity"]["min_cosine"] > 0.999999
    info = FlagModel(str(tmp_path / "b")).engine.info
    assert info.variant == "portable-fp32"


def test_engines_are_built_for_tensorrt_only(tiny_checkpoint: Path, tmp_path: Path):
    result = run(tiny_checkpoint, "--build-engine", "--target", "cpu")
    assert result.exit_code == 2
    assert "--build-engine is for --target tensorrt" in result.stderr


@pytest.mark.skipif(isinstance(nvidia.find_driver(), nvidia.Driver), reason="it has a GPU")
def test_engines_cannot_be_built_without_a_gpu(tiny_checkpoint: Path, tmp_path: Path):
    output = tmp_path / "bundle"
    result = run(
        tiny_checkpoint, "--pooling", "cls", "--output", output, "--target", "tensorrt",
        "--build-engine",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "requested device 'cuda', where variant 'tensorrt-fp16' runs on" in result.stderr
    assert (output / "bge.json").is_file()  # what was exported stays


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--target", "tpu"], "--target tpu"),
        (["--precision", "int4"], "--precision int4"),
        (["--target", "cuda", "--precision", "bf16"], "cuda in bf16"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_table(options: list[str], asked: str):
    result = run("bge-base-en", *options)
    assert result.exit_code == 1
    assert asked in result.stderr
    assert "--target portable  --precision fp32" in result.stderr


def test_an_unknown_name_may_be_a_decoder_but_not_anything():
    assert "nothing/here is neither" not in run("nothing/here", "--target", "tpu").stderr
    assert "requested --target tpu" in run("nothing/here", "--target", "tpu").stderr
    # Written of decoders: only the folder can tell that this is none.
    assert "neither a folder" in run("nothing", "--precision", "int4").stderr


def test_refusal_comes_before_the_model_is_touched(tmp_path: Path):
    result = run("BAAI/bge-m3-unknown", "--output", tmp_path / "x", "--offline")
    assert result.exit_code == 1
    assert "BAAI/bge-m3-unknown is not in the hub's cache" in result.stderr
    assert "loading the checkpoint" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_random_weights_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bge_runtime.sources import MODELS, ModelSpec
    from tests.helpers.bundles import TINY

    facts = MODELS["bge-small-en"]
    tiny = ModelSpec(**{**facts.__dict__, "shape": replace(TINY, layers=1)})
    monkeypatch.setitem(MODELS, "bge-small-en", tiny)
    monkeypatch.chdir(tmp_path)
    result = run("bge-small-en", "--random-weights", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "RANDOM WEIGHTS" in result.stdout
    manifest = json.loads((tmp_path / "bge-small-en-random" / "bge.json").read_text())
    assert manifest["provenance"]["random_seed"] == 3
    assert manifest["model"]["name"] == "bge-small-en-random"
    assert manifest["model"]["query_instruction"].startswith("Represent this sentence")
    with pytest.warns(UserWarning, match="has random weights"):
        FlagModel("bge-small-en-random")
    refused = run("bge-small-en", "--random-weights", "--revision", "main")
    assert refused.exit_code == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_ended_by_a_supervisor_or_with_its_terminal_it_cleans_up(
    tiny_checkpoint: Path, tmp_path: Path, name: str
):
    number = getattr(signal, name)
    # The tests may run under nohup, which has the exporter go on without a terminal.
    code = (
        f"import signal; signal.signal(signal.{name}, signal.SIG_DFL)\n"
        "from bge_export.cli import main; main()"
    )
    command = [
        sys.executable, "-c", code, str(tiny_checkpoint),
        "--pooling", "cls", "--output", str(tmp_path / "bundle"),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "tracing" in line:
                process.send_signal(number)
                break
        assert process.wait(timeout=60) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_without_random_weights_is_a_usage_error(tmp_path: Path):
    result = run("anything", "--tokenizer", tmp_path)
    assert result.exit_code == 2
    assert "--tokenizer are for --random-weights" in result.stderr


def test_default_output_is_never_the_checkpoint(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    from bge_export.cli import _default_output

    monkeypatch.chdir(tiny_checkpoint.parent)
    assert _default_output("tiny", random_weights=False) == Path("tiny-bundle")
    assert _default_output("BAAI/bge-base-zh", random_weights=False) == Path("bge-base-zh")


def test_help_shows_the_table():
    result = run("--help")
    assert result.exit_code == 0
    assert "--target cpu" in result.stdout
