"""What is wrong with a checkpoint's files is one sentence, in the words of whoever asked."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from bge_export import cli as exporter
from bge_export.checkpoint.files import check_tokenizer_files
from bge_export.checkpoint.inspect import Checkpoint, inspect_checkpoint
from bge_runtime import FlagAutoModel
from bge_runtime.cli import embed
from bge_runtime.errors import ExportError
from bge_runtime.sources import export_subprocess
from tests.helpers.files import DEEP, POINTER


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def inspect(folder: Path, **options: str | None) -> Checkpoint:
    return inspect_checkpoint(folder, source=str(folder), **{"pooling": "cls", **options})


def check(folder: Path, **options: str | None) -> None:
    inspect(folder, **options)
    check_tokenizer_files(folder, str(folder))


def remove(*patterns: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return damage


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def link(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/nowhere/at/all")

    return damage


NO_POINTER_YET = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("model.safetensors", "modules.json", "1_Pooling/config.json"),
    "config_sentence_transformers.json",
)

FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"{name} is a pointer": (put(name, POINTER), f"{name} is a Git LFS pointer instead of")
        for name in NO_POINTER_YET
    },
    **{
        f"{name} is nested deeply": (put(name, DEEP), f"{name} is nested too deeply to be read")
        for name in NO_POINTER_YET
        if name != "model.safetensors"
    },
    "no tokenizer": (remove("*token*", "vocab*"), "has no tokenizer: none of tokenizer.json"),
    "the tokenizer is a link to nothing": (link("tokenizer.json"), "tokenizer.json is a link to"),
    "the weights are a link to nothing": (
        link("model.safetensors"),
        "model.safetensors is a link to /nowhere/at/all, which is not there",
    ),
    "a header of weights is nested deeply": (
        put("model.safetensors", len(DEEP).to_bytes(8, "little") + DEEP.encode()),
        "model.safetensors is damaged",
    ),
    "weights are empty": (put("model.safetensors", b""), "model.safetensors is damaged"),
    "an index is a pointer": (
        lambda folder: [
            remove("model.safetensors")(folder),
            put("model.safetensors.index.json", POINTER)(folder),
        ],
        "model.safetensors.index.json is a Git LFS pointer",
    ),
    "other weights are a pointer": (
        lambda folder: [
            remove("model.safetensors")(folder),
            put("pytorch_model.bin", POINTER)(folder),
        ],
        "pytorch_model.bin is a Git LFS pointer",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_one_sentence_that_names_it(checkpoint: Path, fault: str):
    damage, said = FAULTS[fault]
    damage(checkpoint)
    with pytest.raises(ExportError) as caught:
        check(checkpoint, pooling=None if "Pooling" in fault else "cls")
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert str(checkpoint) in message


def test_a_head_that_is_a_pointer_is_named(tiny_m3_checkpoint: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_m3_checkpoint, tmp_path / "m3"))
    (folder / "sparse_linear.pt").write_text(POINTER)
    with pytest.raises(ExportError, match=r"sparse_linear\.pt is a Git LFS pointer"):
        inspect(folder, model_class="encoder-only-m3")


def test_files_that_are_not_read_may_be_pointers(checkpoint: Path):
    # As `git lfs pull --include` leaves them.
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "sentencepiece.bpe.model"):
        put(name, POINTER)(checkpoint)
    check(checkpoint)
    assert inspect(checkpoint).weight_files == ("model.safetensors",)


def test_weights_that_are_linked_out_of_the_folder_are_read(checkpoint: Path, tmp_path: Path):
    shutil.move(checkpoint / "model.safetensors", tmp_path / "blob")
    (checkpoint / "model.safetensors").symlink_to(tmp_path / "blob")
    assert inspect(checkpoint).weight_files == ("model.safetensors",)


# -- Pickles ------------------------------------------------------------------------------


class Runs:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def zipped(content: object) -> bytes:
    import io

    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "colbert_linear.pt"])
def test_a_pickle_that_is_none_or_runs_code_is_told_in_our_words(
    tiny_m3_checkpoint: Path, tmp_path: Path, name: str
):
    from bge_export.encoder.load import load_encoder, load_heads

    folder = Path(shutil.copytree(tiny_m3_checkpoint, tmp_path / "m3"))
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    load = load_encoder if name == "pytorch_model.bin" else partial(load_heads, width=48)
    ran = tmp_path / "ran"
    for content in (
        b"",
        b"no pickle",
        zipped({"a": 1})[:-40],
        zipped(Runs(ran)),
        pickle.dumps({"weight": Runs(ran)}),
        json.dumps({}).encode(),
    ):
        (folder / name).write_bytes(content)
        checkpoint = inspect(folder, model_class="encoder-only-m3")
        with pytest.raises(ExportError) as caught:
            load(checkpoint)
        message = str(caught.value)
        assert message.startswith(f"cannot read {folder / name}: it is damaged, or a pickle that")
        assert "safetensors" in message
        assert "weights_only" not in message
    assert not ran.exists()


# -- The words of whoever asked -----------------------------------------------------------


POOLING = put("1_Pooling/config.json", '{"pooling_mode_cls_token": true}')
CODE = put("config.json", '{"model_type": "new", "auto_map": {"AutoModel": "code.Model"}}')

ADVICE = {
    "no pooling": (lambda folder: None, "pooling_method='cls'", "--pooling cls"),
    "other pooling": (
        put("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}'),
        "pooling_method='cls'",
        "--pooling cls",
    ),
    "own code": (
        lambda folder: [POOLING(folder), CODE(folder)],
        "trust_remote_code=True",
        "--trust-remote-code",
    ),
}


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """Run exports that Python asks for as a command in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(command, environment):
        result = CliRunner().invoke(exporter.main, command[3:], env=environment)
        return result.exit_code, [line.strip() for line in result.stderr.splitlines()]

    monkeypatch.setattr(export_subprocess, "run_export", run)


@pytest.mark.parametrize("fault", ADVICE)
def test_advice_is_in_the_words_of_the_caller(
    checkpoint: Path, in_this_process: None, tmp_path: Path, fault: str
):
    damage, python, shell = ADVICE[fault]
    damage(checkpoint)
    with pytest.raises(ExportError) as caught:
        FlagAutoModel.from_finetuned(str(checkpoint))
    message = str(caught.value).partition("\nTo try it by hand:\n")[0]
    assert python in message
    assert not re.search(r"--[a-z]", re.sub("`bge-export [^`]*`", "", message))

    told = CliRunner().invoke(exporter.main, [str(checkpoint), "--output", str(tmp_path / "out")])
    assert told.exit_code == 1
    assert shell in told.stderr
    assert not re.search(r"\w=['T]", told.stderr)

    told = CliRunner().invoke(embed.main, [str(checkpoint)], input="text\n")
    assert told.exit_code == 1
    assert f"bge-export's {shell}" in told.stderr


def test_a_class_to_open_a_model_with_is_an_option_of_the_exporter(
    checkpoint: Path, tmp_path: Path
):
    arguments = [str(checkpoint), "--output", str(tmp_path / "out"), "--pooling", "cls"]
    told = CliRunner().invoke(exporter.main, [*arguments, "--model-class", "encoder-only-m3"])
    assert told.exit_code == 1
    assert "or pass --model-class encoder-only-base for its dense vectors alone" in told.stderr
    with pytest.raises(ExportError, match="or open it with FlagModel for its dense vectors alone"):
        inspect(checkpoint, model_class="encoder-only-m3")


# -- Encodings ----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_name_that_the_terminal_has_no_characters_for_is_shown_escaped(
    tmp_path: Path, tiny_bundle: Path, encoding: str
):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "模型"))
    environment = {
        **os.environ,
        "PYTHONIOENCODING": encoding,
        "XDG_CACHE_HOME": str(tmp_path / "ü"),
    }
    for command, status, said in (
        (["bge_export.cli", str(folder)], 1, r"\u6a21\u578b is a bundle already"),
        (["bge_runtime.cli.embed", str(tmp_path / "没有")], 1, r"\u6ca1\u6709"),
        (["bge_runtime.cli.doctor", "doctor", "--verify", str(folder)], 0, r"\u6a21\u578b"),
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", *command],
            env=environment, capture_output=True, check=False, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        # click takes an encoding of ASCII for a mistake, and writes UTF-8 then.
        output = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert done.returncode == status, output
        assert said in output or said.encode().decode("unicode_escape") in output
        assert "Traceback" not in output


@pytest.mark.parametrize("which", ["model", "output"])
def test_a_path_that_is_not_utf8_is_one_sentence(checkpoint: Path, tmp_path: Path, which: str):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    model, output = str(checkpoint), str(tmp_path / "out")
    if which == "model":
        os.rename(checkpoint, odd)
        model = odd
    else:
        output = odd
    result = CliRunner().invoke(exporter.main, [model, "--output", output, "--pooling", "cls"])
    assert result.exit_code == 1
    assert r"caf\udce9" in result.stderr
    assert "is not UTF-8" in result.stderr
    assert len(result.stderr.splitlines()) <= 2
