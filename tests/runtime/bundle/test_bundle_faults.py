"""A bundle that is damaged, or is none, gives one clear error of its own type."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import Bundle, FlagModel
from bge_runtime.bundle import FORMAT_VERSION
from bge_runtime.errors import (
    BgeError,
    BundleError,
    BundleIntegrityError,
    BundleVersionError,
    HubError,
    InferenceError,
    ModelNotFoundError,
    PrecisionError,
)
from bge_runtime.system import file_hash
from tests.helpers.files import DEEP, POINTER
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.runtime import TEXTS, assert_same, edit_manifest, replace_file

GRAPH = "onnx/model_cpu_fp32.onnx"
WEIGHTS = "onnx/model.onnx_data"


def flip_last_byte(path: Path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def bundle_files(bundle: Path):
    return sorted(json.loads((bundle / "bge.json").read_text("utf-8"))["files"])


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json", "parity.npz", "config.json"])
def test_a_changed_byte_is_noticed(bundle_copy, name):
    FlagModel(str(bundle_copy))  # so that the weights' hash is remembered
    flip_last_byte(bundle_copy / name)
    with pytest.raises(BundleIntegrityError, match=f"{name} has changed since it was exported"):
        FlagModel(str(bundle_copy))


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json"])
def test_a_missing_file_is_noticed(bundle_copy, name):
    (bundle_copy / name).unlink()
    with pytest.raises(BundleIntegrityError, match=f"{name} is missing; copy the bundle again"):
        FlagModel(str(bundle_copy))


def test_every_file_of_a_bundle_is_checked(bundle_copy):
    on_disk = [path for path in bundle_copy.rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(bundle_copy)) for path in on_disk)
    assert names == sorted([*bundle_files(bundle_copy), "bge.json"])


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json"])
def test_a_truncated_file_is_noticed_by_its_size(bundle_copy, name):
    path = bundle_copy / name
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(BundleIntegrityError, match=f"has {size - 1:,} bytes and should have"):
        FlagModel(str(bundle_copy))


def test_a_folder_instead_of_a_file_is_an_integrity_error(bundle_copy):
    path = bundle_copy / "config.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(BundleIntegrityError, match=r"config.json"):
        FlagModel(str(bundle_copy))


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer.json", "parity.npz", "bge.json"])
def test_a_git_lfs_pointer_instead_of_a_file_is_an_error_that_says_so(bundle_copy, name):
    # As a clone of a repository leaves it where Git LFS is not installed.
    (bundle_copy / name).write_text(POINTER)
    with pytest.raises(BundleError, match=rf"{name} is a Git LFS pointer .*`git lfs pull`"):
        FlagModel(str(bundle_copy))


# -- Links --------------------------------------------------------------------------------


def link_weights(bundle, blobs):
    """Keep the weights elsewhere."""
    shutil.move(bundle / WEIGHTS, blobs / "weights")
    (bundle / WEIGHTS).symlink_to(blobs / "weights")


def link_all_files(bundle, blobs):
    """Keep every file under another name elsewhere, as the hub's cache does."""
    for number, path in enumerate(sorted(p for p in bundle.rglob("*") if p.is_file())):
        shutil.move(path, blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))


def link_folder(bundle, blobs):
    shutil.move(bundle / "onnx", blobs / "onnx")
    (bundle / "onnx").symlink_to(blobs / "onnx")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("link", [link_weights, link_all_files, link_folder])
def test_symlinks_out_of_the_bundle_are_opened(bundle_copy, tmp_path, model, engine, link):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    link(bundle_copy, blobs)
    before = sorted(blobs.rglob("*"))
    linked = FlagModel(str(bundle_copy), engine=engine, use_fp16=False)
    tolerance = 0 if engine == "onnxruntime" else 1e-5
    assert_same(linked.encode(TEXTS), model.encode(TEXTS), tolerance=tolerance)
    assert sorted(blobs.rglob("*")) == before


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_weights_that_cannot_be_linked_are_an_error_that_says_so(
    bundle_copy, tmp_path, monkeypatch, engine
):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    blobs = tmp_path / "blobs"
    blobs.mkdir()
    link_weights(bundle_copy, blobs)
    for place, name in ((tempfile, "mkdtemp"), (os, "link")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refuse)
            with pytest.raises(BundleError) as caught:
                FlagModel(str(bundle_copy), engine=engine, use_fp16=False)
        assert f"model.onnx_data is a link to {blobs / 'weights'}" in str(caught.value)
        assert "(Read-only file system). Copy the bundle with what its links" in str(caught.value)
        assert [path.name for path in blobs.iterdir()] == ["weights"]


def test_a_dangling_link_is_an_error_that_says_so(bundle_copy):
    (bundle_copy / WEIGHTS).unlink()
    (bundle_copy / WEIGHTS).symlink_to("gone")
    with pytest.raises(BundleIntegrityError, match=r"a link to gone, which does not exist; copy"):
        FlagModel(str(bundle_copy))


def test_a_newer_format_says_how_to_update(bundle_copy):
    edit_manifest(bundle_copy, lambda data: data.update(format_version=FORMAT_VERSION + 1))
    message = rf"format version {FORMAT_VERSION + 1}.*pip install -U bge-runtime"
    with pytest.raises(BundleVersionError, match=message):
        FlagModel(str(bundle_copy))


def test_older_runtimes_read_bundles_of_embedders_and_are_told_of_rerankers(tiny_bundle, made_once):
    del made_once
    for folder, version in ((tiny_bundle, 1), (reranker_bundle("bert"), 2)):
        assert json.loads((folder / "bge.json").read_text("utf-8"))["format_version"] == version


def test_keys_of_a_later_minor_version_are_ignored(bundle_copy, model):
    def change(data):
        data["later"] = data["model"]["later"] = data["variants"][0]["later"] = 1

    edit_manifest(bundle_copy, change)
    assert_same(FlagModel(str(bundle_copy)).encode(TEXTS), model.encode(TEXTS), tolerance=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        (DEEP, "is nested too deeply to be read as JSON"),
        ("[]", "is not a bundle manifest"),
        ("null", "is not a bundle manifest"),
        ("{}", "is not a bundle manifest"),
        ('{"format": "other"}', "is not a bundle manifest"),
        ('{"format": "bge-runtime bundle"}', "has no format_version"),
        ('{"format": "bge-runtime bundle", "format_version": 1}', "is damaged"),
    ],
)
def test_an_invalid_manifest_is_a_bundle_error(bundle_copy, content, message):
    (bundle_copy / "bge.json").write_text(content)
    with pytest.raises(BundleError, match=f"bge.json {message}"):
        FlagModel(str(bundle_copy))


def test_a_manifest_that_is_not_text_is_a_bundle_error(bundle_copy):
    (bundle_copy / "bge.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match=r"cannot read .*bge.json"):
        FlagModel(str(bundle_copy))


KEYS = [
    *[(key,) for key in ("model", "graphs", "variants", "files", "provenance")],
    *[("model", key) for key in ("dim", "pooling", "max_length", "pad_token_id")],
    *[("graphs", "cpu", key) for key in ("file", "weights", "outputs")],
    *[("variants", 0, key) for key in ("graph", "engine", "device", "precision", "parity")],
    *[("files", GRAPH, key) for key in ("size_bytes", "sha256")],
]


def descend(data, keys):
    for key in keys:
        # The key of the CPU's graph is the exporter's to choose.
        data = data[key] if key != "cpu" else next(g for g in data.values() if g["file"] == GRAPH)
    return data


@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: ".".join(map(str, keys)))
def test_a_missing_key_is_a_bundle_error(bundle_copy, keys):
    def change(data):
        del descend(data, keys[:-1])[keys[-1]]

    edit_manifest(bundle_copy, change)
    with pytest.raises(BundleError, match=r"bge.json is damaged .*bge-export"):
        FlagModel(str(bundle_copy))


@pytest.mark.parametrize("key", ["model", "graphs", "variants", "files", "provenance"])
@pytest.mark.parametrize("value", [None, 3, "text"], ids=repr)
def test_a_section_of_the_wrong_type_is_a_bundle_error(bundle_copy, key, value):
    edit_manifest(bundle_copy, lambda data: data.update({key: value}))
    with pytest.raises(BundleError, match=r"bge.json is damaged"):
        FlagModel(str(bundle_copy))


def test_a_graph_without_a_hash_is_rejected(bundle_copy):
    edit_manifest(bundle_copy, lambda data: data["files"].pop(GRAPH))
    with pytest.raises(BundleIntegrityError, match=f"lists no size and hash for {GRAPH}"):
        FlagModel(str(bundle_copy))


def test_a_variant_of_an_unknown_graph_is_a_bundle_error(bundle_copy):
    edit_manifest(bundle_copy, lambda data: data["variants"][0].update(graph="lost"))
    with pytest.raises(BundleError, match=r"names a graph 'lost' that it does not describe"):
        FlagModel(str(bundle_copy))


def test_a_bundle_without_variants_is_a_bundle_error(bundle_copy):
    edit_manifest(bundle_copy, lambda data: data.update(variants=[]))
    with pytest.raises(BundleError, match="no variants"):
        FlagModel(str(bundle_copy))


def test_a_graph_that_onnxruntime_cannot_read_is_a_bundle_error(bundle_copy):
    replace_file(bundle_copy, GRAPH, b"no protobuf at all")
    with pytest.raises(BundleError, match=r"ONNX Runtime [\d.]+ cannot open .*model_cpu_fp32"):
        FlagModel(str(bundle_copy))


def test_a_token_the_model_does_not_know_is_an_inference_error(bundle_copy):
    # A tokenizer of another model, with an id beyond the word embeddings.
    data = json.loads((bundle_copy / "tokenizer.json").read_text("utf-8"))
    data["model"]["vocab"]["b"] = 50_000
    replace_file(bundle_copy, "tokenizer.json", json.dumps(data).encode())
    model = FlagModel(str(bundle_copy))
    before = model.encode(["a", "c"])
    with pytest.raises(InferenceError, match="failed on a batch of 1 texts of 3 tokens") as caught:
        model.encode("b")
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.__cause__ is not None
    assert_same(model.encode(["a", "c"]), before, tolerance=0)


# -- No bundle at all ---------------------------------------------------------------------


def test_an_empty_folder_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"that folder is empty; pass .*bge-export"):
        FlagModel(str(tmp_path))


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ("bge-small-en-v1.5", "bge-export BAAI/bge-small-en-v1.5 --output bge-small-en-v1.5"),
        ("/nowhere/at/all", "bge-export MODEL --output all"),
    ],
)
def test_a_name_without_a_folder_is_not_found_and_the_message_names_the_command(asked, command):
    with pytest.raises(ModelNotFoundError, match="there is no such folder") as caught:
        FlagModel(asked)
    assert command in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    "asked",
    [
        "https://huggingface.co/BAAI/bge-m3",
        "https://huggingface.co/BAAI/bge-m3/tree/main",
        "https://huggingface.co/BAAI/bge-m3.git",
        "http://hub.example:8080/BAAI/bge-m3/",
        "huggingface.co/BAAI/bge-m3",
        "hf://BAAI/bge-m3",
        "models/BAAI/bge-m3",
        "BAAI/bge-m3/",
        " BAAI/bge-m3\n",
    ],
)
def test_the_error_for_a_hub_url_shows_the_hub_id(asked):
    with pytest.raises(ModelNotFoundError, match=r"did you mean the Hub ID BAAI/bge-m3\?"):
        FlagModel(asked)


@pytest.mark.parametrize("asked", ["my--org/x", "a/..b", "a/b.git", f"a/{'x' * 97}"])
def test_an_invalid_hub_id_is_not_blamed_on_the_network(asked):
    with pytest.raises(
        HubError, match=rf"no folder '{re.escape(asked)}'; {re.escape(asked)} is not a valid Hub ID"
    ) as caught:
        FlagModel(asked)
    assert "network" not in str(caught.value)


def test_a_file_instead_of_a_folder_is_not_found(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFoundError):
        FlagModel(str(tmp_path / "file"))


def test_a_path_object_and_a_later_change_of_directory_work(
    bundle_copy, model, monkeypatch, tmp_path
):
    monkeypatch.chdir(bundle_copy.parent)
    for path in (bundle_copy.name, Path(bundle_copy.name)):
        moved = FlagModel(path)
        monkeypatch.chdir(tmp_path.parent)
        moved._engines.opened = {}  # as after a fork
        assert_same(moved.encode(TEXTS), model.encode(TEXTS), tolerance=0)
        monkeypatch.chdir(bundle_copy.parent)


# -- Hashing ------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were hashed, in order."""
    names = []
    real = file_hash.file_sha256

    def counted(path, *arguments):
        names.append(path.name)
        return real(path, *arguments)

    monkeypatch.setattr(file_hash, "file_sha256", counted)
    return names


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache that nobody has written to yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_weights_are_hashed_once_and_small_files_each_time(bundle_copy, hashed, own_cache):
    for opening in (1, 2, 3):
        Bundle.open(bundle_copy)
        assert hashed.count("model.onnx_data") == 1
        assert hashed.count("model_cpu_fp32.onnx") == opening
        assert hashed.count("tokenizer.json") == opening


def test_weights_that_were_touched_are_hashed_again(bundle_copy, hashed, own_cache):
    Bundle.open(bundle_copy)
    os.utime(bundle_copy / WEIGHTS, ns=(1, 1))
    Bundle.open(bundle_copy)
    assert hashed.count("model.onnx_data") == 2


def test_a_wrong_hash_of_weights_is_remembered_as_well(bundle_copy, hashed, own_cache):
    flip_last_byte(bundle_copy / WEIGHTS)
    for _ in range(2):
        with pytest.raises(BundleIntegrityError, match=r"model.onnx_data has changed"):
            Bundle.open(bundle_copy)
    assert hashed.count("model.onnx_data") == 1


def test_a_damaged_cache_entry_of_a_hash_is_ignored(bundle_copy, hashed, own_cache):
    Bundle.open(bundle_copy)
    notes = list(own_cache.rglob("*.json"))
    assert len(notes) == 1
    for content in ("", "[]", "{}", "null", '{"identity": 1}', "\udcff", DEEP):
        hashed.clear()
        notes[0].write_bytes(content.encode("utf-8", "surrogateescape"))
        Bundle.open(bundle_copy)
        assert hashed.count("model.onnx_data") == 1


def test_a_cache_that_cannot_be_written_costs_time_only(bundle_copy, hashed, monkeypatch, tmp_path):
    # Below a regular file even root cannot make a folder.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for opening in (1, 2):
        assert FlagModel(str(bundle_copy)).encode("text").shape == (48,)
        assert hashed.count("model.onnx_data") == opening


# -- The proof that travels with a bundle -------------------------------------------------


def test_the_bundle_holds_pytorchs_vectors_of_its_own_texts(model):
    reference = model.bundle.reference()
    assert len(reference.texts) == len(reference.token_ids) == len(reference.vectors) > 20
    assert "" in reference.texts
    ids = model.tokenizer.encode(reference.texts, max_length=512)
    assert all(map(np.array_equal, ids, reference.token_ids))


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_reference_is_a_bundle_error(bundle_copy, content):
    replace_file(bundle_copy, "parity.npz", content)
    with pytest.raises(BundleError, match=r"cannot read .*parity.npz"):
        Bundle.open(bundle_copy).reference()


def test_every_error_of_this_package_has_one_base():
    for error in (BundleError, ModelNotFoundError, InferenceError, PrecisionError):
        assert issubclass(error, BgeError)
