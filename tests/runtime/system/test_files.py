"""What others left on a disk: each fault of it is one sentence and one kind of error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bge_runtime import BGEM3FlagModel, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel
from bge_runtime.bundle.folders import explain_no_model, explain_renewal
from bge_runtime.errors import BgeError, BundleError, ModelNotFoundError
from bge_runtime.system.files import local_path, read_json
from tests.helpers.files import DEEP, POINTER


def check_one_sentence(message: str, *, about: str) -> None:
    """Check that a message is one line that names what it is about and is no traceback."""
    assert about in message
    assert "\n" not in message
    assert "Traceback" not in message
    assert "Errno" not in message
    message.encode()


# -- JSON ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not valid JSON (the file is empty)"),
        (b" \n", "is not valid JSON (the file is empty)"),
        (b'{"a": ', "is not valid JSON (Expecting value"),
        (b'{"a": 1}}', "is not valid JSON (Extra data"),
        (b"<html></html>", "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b"3", "is not a JSON object"),
        (b"1" * 5000, "is not valid JSON"),  # more digits than Python reads
        (DEEP.encode(), "is nested too deeply"),
        (b'{"a":' * 200_000, "is nested too deeply"),
        (POINTER.encode(), "is a Git LFS pointer instead of the file itself; run `git lfs pull`"),
        ("\ufeff{}".encode(), "it begins with a byte order mark"),
        ('{"a": "é"}'.encode("latin-1"), "it is not UTF-8"),
        ("{}".encode("utf-16"), "it is not UTF-8"),
        (b"\x80\x04\x95", "it is not UTF-8"),
    ],
)
def test_invalid_json_is_an_error_of_one_sentence(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_json(path, error=BundleError, remedy="do this")
    check_one_sentence(str(caught.value), about=str(path))
    assert said in str(caught.value)
    assert str(caught.value).endswith("do this") != ("git lfs pull" in said)


def test_the_kind_of_json_is_checked_and_utf8_sig_is_accepted(tmp_path: Path):
    path = tmp_path / "list.json"
    path.write_bytes("\ufeff[1]".encode())
    assert read_json(path, error=BundleError, kind=list, encoding="utf-8-sig") == [1]
    path.write_text("{}")
    with pytest.raises(BundleError, match="is not a JSON list"):
        read_json(path, error=BundleError, kind=list)


def test_a_folder_instead_of_json_is_one_sentence_and_a_missing_file_is_left_to_the_caller(
    tmp_path: Path,
):
    with pytest.raises(BundleError) as caught:
        read_json(tmp_path, error=BundleError)
    check_one_sentence(str(caught.value), about=f"cannot read {tmp_path}: ")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", error=BundleError)


# -- Names of models ----------------------------------------------------------------------


def a_loop(folder: Path) -> Path:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return folder / "a"


NAMES = {
    "a user without a home": (lambda _: "~nosuchuser/model", "~nosuchuser has no home folder"),
    "a long name": (lambda _: "a" * 300, "File name too long"),
    "a long name in a folder": (lambda folder: folder / ("a" * 300), "File name too long"),
    "a long path": (lambda _: "a/" * 3000, "File name too long"),
    "a loop of links": (a_loop, "Too many levels of symbolic links"),
    "an empty string": (lambda _: "", ", not ''"),
    "a link to nothing": (
        lambda folder: ((folder / "link").symlink_to("gone"), folder / "link")[1],
        "that is a link to gone, which does not exist",
    ),
    "a byte that is no character": (lambda folder: f"{folder}/caf\udce9", "is not UTF-8"),
    "a character that ends strings": (lambda _: "mo\0del", "there is no such folder"),
    "a name below a file": (lambda _: f"{__file__}/model", "there is no such folder"),
    "spaces": (lambda _: "some where/my model", "there is no such folder"),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_unusable_name_is_an_error_of_one_sentence(tmp_path: Path, name: str):
    make, said = NAMES[name]
    model = make(tmp_path)
    for opens in (FlagModel, FlagAutoModel.from_finetuned):
        with pytest.raises(ModelNotFoundError) as caught:
            opens(model)
        first = str(caught.value).partition("\n")[0]
        assert said in first
        check_one_sentence(first, about="")
        assert len(first) < 600


@pytest.mark.parametrize("name", [None, 3, b"model", ["model"], True, 1.5], ids=repr)
@pytest.mark.parametrize(
    "opens",
    [FlagModel, BGEM3FlagModel, FlagLLMModel, FlagICLModel, FlagAutoModel.from_finetuned],
)
def test_a_name_of_the_wrong_type_is_a_type_error_that_shows_it(opens, name):
    with pytest.raises(TypeError, match="a model is a folder or a Hub ID") as caught:
        opens(name)
    assert repr(name) in str(caught.value)


DENIED = """
import os, sys
from bge_runtime import FlagModel
from bge_runtime.errors import ModelNotFoundError
if os.geteuid() == 0:
    os.setuid(65534)
for name in sys.argv[1:]:
    try:
        FlagModel(name)
    except ModelNotFoundError as error:
        print(error)
"""


def test_an_unreadable_folder_is_an_error_of_one_sentence(tmp_path: Path):
    closed = tmp_path / "closed"
    (closed / "model").mkdir(parents=True)
    (closed / "model" / "config.json").touch()
    above = tmp_path
    while above != above.parent:  # another user has to come as far as this
        if os.access(above, os.W_OK) and above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o055)
        above = above.parent
    closed.chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", DENIED, str(closed / "model"), str(closed)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        closed.chmod(0o700)
    inside, folder = done.stdout.splitlines()
    assert inside == f"cannot open {closed / 'model'}: Permission denied", done.stderr
    assert folder == f"cannot read {closed}: permission denied"


def test_a_deleted_current_folder_is_an_error_of_one_sentence(tmp_path: Path, monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(ModelNotFoundError, match="the current folder no longer exists"):
        local_path("model", error=ModelNotFoundError)


# -- Folders that hold no model -----------------------------------------------------------


def write(folder: Path, *names: str, content: str = "{}") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def an_adapter(folder: Path) -> Path:
    write(folder, "adapter_model.safetensors")
    about = json.dumps({"base_model_name_or_path": "BAAI/bge-m3"})
    return write(folder, "adapter_config.json", content=about)


def a_repository(folder: Path) -> Path:
    write(folder, "models--BAAI--bge-m3/refs/main")
    write(folder, f"models--BAAI--bge-m3/snapshots/{COMMIT}/config.json")
    return folder / "models--BAAI--bge-m3"


FOLDERS = {
    "empty": (lambda folder: folder, "that folder is empty; pass the folder that"),
    "other files": (lambda f: write(f, "README.md"), "no bge.json of a bundle and no config.json"),
    "weights alone": (
        lambda f: write(f, "model.safetensors"),
        "it has model.safetensors, and no config.json; pass the folder that bge-export or",
    ),
    "another format": (lambda f: write(f, "q4.gguf"), "it has q4.gguf, and no config.json"),
    "an adapter": (
        an_adapter,
        "a LoRA adapter (adapter_config.json), and its changes to BAAI/bge-m3",
    ),
    "an adapter of nothing known": (
        lambda f: write(f, "adapter_config.json", content=DEEP),
        "a LoRA adapter (adapter_config.json), and its changes to another model",
    ),
    "a model below": (lambda f: write(f, "model/config.json"), "but {folder}/model does; pass"),
    "checkpoints below": (
        lambda f: write(f, "run/checkpoint-1/config.json", "run/checkpoint-2/bge.json"),
        "but {folder}/run/checkpoint-1 and {folder}/run/checkpoint-2 does",
    ),
    "the hub's cache": (
        lambda f: a_repository(f).parent,
        "that is the hub's cache; pass the Hub ID of a model in it, such as BAAI/bge-m3",
    ),
    "a repository of the hub's cache": (
        a_repository,
        f"Pass its Hub ID BAAI/bge-m3, or its snapshot {{folder}}/snapshots/{COMMIT}",
    ),
    "a repository without a snapshot": (
        lambda f: write(f, "models--a--b/snapshots/1/README.md") / "models--a--b",
        "it holds no snapshot of a model. Pass the Hub ID a/b to download it",
    ),
    "a file": (lambda f: write(f, "config.json") / "config.json", "that is a file; pass {parent}"),
    "any file": (lambda f: write(f, "x.bin") / "x.bin", "that is a file; pass a folder"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_a_model_says_what_it_is_and_what_to_pass(tmp_path: Path, name: str):
    make, said = FOLDERS[name]
    folder = make(tmp_path)
    said = said.format(folder=folder, parent=folder.parent)
    assert said in explain_no_model(folder)
    for opens in (FlagModel, FlagAutoModel.from_finetuned):
        with pytest.raises(ModelNotFoundError) as caught:
            opens(str(folder))
        check_one_sentence(str(caught.value), about=said)


def test_the_error_for_a_damaged_bundle_says_how_to_restore_it_depending_on_its_place(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    snapshot = tmp_path / "models--a--b" / "snapshots" / COMMIT
    cached = tmp_path / "cache" / "bge-runtime" / "bundles" / "b-1"
    for folder, said in (
        (tmp_path / "b", "copy the bundle again, or export it again with bge-export --force"),
        (snapshot, f"`hf download a/b --revision {COMMIT} --force-download`"),
        (cached, f"delete {cached}, which is a cache: it will be exported again"),
    ):
        assert said in explain_renewal(folder)
        for damaged in (POINTER[:9], "{}", '{"format": "bge-runtime bundle"}'):
            write(folder, "bge.json", content=damaged)
            with pytest.raises(BgeError) as caught:
                FlagModel(str(folder))
            check_one_sentence(str(caught.value), about=said)
