"""Where models come from: folder, hub, cache, export on demand."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bge_runtime import BGEM3FlagModel, Bundle, FlagAutoModel, FlagModel
from bge_runtime.errors import BundleIntegrityError, ExportError, ModelNotFoundError
from bge_runtime.sources import ExportRequest, export_subprocess, find_bundle
from tests.helpers.bundles import export, write_tiny_bert
from tests.helpers.hub import BARE, LocalHub, local_hub
from tests.helpers.runtime import TEXTS, assert_same

EMBED = """
import sys, numpy as np
from bge_runtime import FlagModel
options = eval(sys.argv[3]) if len(sys.argv) > 3 else {}
model = FlagModel(sys.argv[1], use_fp16=False, **options)
np.save(sys.argv[2], model.encode(["hello world", "a longer text"]))
print(*[name for name in ("torch", "transformers", "onnx") if name in sys.modules])
"""

STAND_IN = """
import shutil, time
from bge_runtime.sources import export_subprocess
def run(command, environment):
    time.sleep(2)  # in which the other process comes by
    shutil.copytree(BUNDLE, command[command.index("--output") + 1])
    return 0, []
export_subprocess.run_export = run
"""
"""Before `EMBED`: has a bundle at hand in place of an exporter, for which PyTorch takes seconds."""


@pytest.fixture
def hub():
    with local_hub() as serving:
        yield serving


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache that nobody has written to yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bge-runtime" / "bundles"


@pytest.fixture
def exports(monkeypatch, own_cache):
    """Export in this process, which has loaded torch already; the commands, in order."""
    commands = []

    def run(command, environment):
        _, _, _, source, *options = command
        commands.append([source, *options])
        given = dict(zip(options[::2], options[1::2], strict=True))
        export(
            Path(source),
            Path(given["--output"]),
            pooling=given.get("--pooling"),
            model_class=given.get("--model-class"),
            **({"targets": [given["--target"]], "precisions": [given["--precision"]]}
               if "--target" in given else {}),
        )  # fmt: skip
        return 0, []

    monkeypatch.setattr(export_subprocess, "run_export", run)
    return commands


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of a checkpoint, to retrain."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "mine" / "tiny")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return folder


def start(
    name,
    vectors: Path,
    environment: dict[str, str],
    *options: str,
    exported: Path | None = None,
) -> subprocess.Popen:
    """Embed in a process of its own: the hub's settings are read when it is imported.

    With ``exported`` an export gives that bundle.
    """
    program = EMBED if exported is None else f"BUNDLE = {str(exported)!r}\n{STAND_IN}{EMBED}"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(name), str(vectors), *options],
        env=environment,
        cwd=vectors.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def embed(
    name, tmp_path: Path, environment: dict[str, str], *options: str, exported: Path | None = None
) -> np.ndarray:
    with start(name, tmp_path / "v.npy", environment, *options, exported=exported) as process:
        said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert said.split() == [], f"the process that embeds loaded {said}"
    return np.load(tmp_path / "v.npy")


@pytest.fixture
def expected(model):
    return model.encode(["hello world", "a longer text"])


# -- A bundle on the hub ------------------------------------------------------------------


def test_a_bundle_on_the_hub_is_used_without_pytorch(
    hub: LocalHub, tiny_bundle: Path, tmp_path: Path, expected
):
    hub.add_folder("someone/tiny", tiny_bundle)
    hub.repos["someone/tiny"][hub.refs["someone/tiny"]["main"]]["other.bin"] = b"not ours"
    environment = hub.environment(tmp_path)
    assert_same(embed("someone/tiny", tmp_path, environment), expected)
    assert not [line for line in hub.requests if "other.bin" in line]

    hub.requests.clear()
    assert_same(embed("someone/tiny", tmp_path, environment), expected)
    assert len(hub.requests) == 1, "one question for news, nothing downloaded again"

    hub.requests.clear()
    assert_same(embed("someone/tiny", tmp_path, {**environment, "HF_HUB_OFFLINE": "1"}), expected)
    assert hub.requests == []


def test_a_filled_cache_works_without_the_hub(tiny_bundle: Path, tmp_path: Path, expected):
    with local_hub() as hub:
        hub.add_folder("someone/tiny", tiny_bundle)
        environment = hub.environment(tmp_path)
        embed("someone/tiny", tmp_path, environment)
    assert_same(embed("someone/tiny", tmp_path, environment), expected)


def test_a_new_commit_is_fetched_and_an_old_one_can_be_requested(
    hub: LocalHub, tiny_bundle: Path, tiny_mean_bundle: Path, tmp_path: Path, expected
):
    environment = hub.environment(tmp_path)
    old = hub.add_folder("someone/tiny", tiny_bundle, "v1")
    embed("someone/tiny", tmp_path, environment)
    hub.add_folder("someone/tiny", tiny_mean_bundle)
    assert np.abs(embed("someone/tiny", tmp_path, environment) - expected).max() > 0.01
    for revision in ("v1", old):
        pinned = embed("someone/tiny", tmp_path, environment, str({"revision": revision}))
        assert_same(pinned, expected)


def test_a_killed_download_leaves_nothing_that_is_used(
    hub: LocalHub, tiny_bundle: Path, tmp_path: Path, expected
):
    hub.add_folder("someone/tiny", tiny_bundle)
    environment = hub.environment(tmp_path)
    hub.stall = "model.onnx_data"
    with start("someone/tiny", tmp_path / "v.npy", environment) as process:
        assert hub.stalled.wait(60)
        os.killpg(process.pid, signal.SIGKILL)
    hub.stall = None
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    with start("someone/tiny", tmp_path / "v.npy", offline) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the hub's cache holds only a part of someone/tiny" in errors
    assert_same(embed("someone/tiny", tmp_path, environment), expected)


OFFLINE = """
from bge_runtime import FlagModel
try:
    FlagModel("BAAI/bge-small-en-v1.5")
except FileNotFoundError as error:
    print(type(error).__name__, error)
"""


def test_offline_with_an_empty_cache_is_an_error_without_a_request(hub: LocalHub, tmp_path: Path):
    environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kind, message = done.stdout.split(maxsplit=1)
    assert kind == "HubError"
    assert "BAAI/bge-small-en-v1.5 is not in the hub's cache, and HF_HUB_OFFLINE" in message
    assert hub.requests == []


def test_a_private_repository_opens_with_the_token(hub: LocalHub, tmp_path: Path):
    hub.repos["someone/gated"], hub.refs["someone/gated"] = {}, {}
    hub.gated.add("someone/gated")
    with start("someone/gated", tmp_path / "v.npy", hub.environment(tmp_path)) as process:
        _, errors = process.communicate(timeout=60)
    assert "is gated: accept the terms on its Hub page" in errors


# -- A checkpoint on the hub --------------------------------------------------------------


def test_a_checkpoint_on_the_hub_is_exported_once(
    hub: LocalHub, tiny_checkpoint: Path, tmp_path: Path, expected
):
    hub.add_folder("BAAI/bge-small-en", tiny_checkpoint)
    environment = hub.environment(tmp_path)
    assert_same(embed("BAAI/bge-small-en", tmp_path, environment), expected)

    hub.requests.clear()
    assert_same(embed("BAAI/bge-small-en", tmp_path, environment), expected)
    assert not [line for line in hub.requests if "safetensors" in line]

    hub.requests.clear()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert_same(embed("BAAI/bge-small-en", tmp_path, offline), expected)
    assert hub.requests == []
    assert len(list((tmp_path / "cache/bge-runtime/bundles").glob("bge-small-en-*"))) == 1


# -- A checkpoint in a folder -------------------------------------------------------------


def test_a_checkpoint_in_a_folder_is_exported_once(checkpoint, exports, own_cache, model):
    first = FlagModel(str(checkpoint), use_fp16=False)
    assert first.bundle.path.parent == own_cache
    again = FlagAutoModel.from_finetuned(str(checkpoint), use_fp16=False)
    assert again.model_name_or_path == str(checkpoint)
    for opened in (first, again):
        assert_same(opened.encode(TEXTS), model.encode(TEXTS))
    assert len(exports) == 1


def test_a_retrained_checkpoint_never_serves_old_vectors(checkpoint, exports, tmp_path):
    weights = checkpoint / "model.safetensors"
    old = FlagModel(str(checkpoint), use_fp16=False).encode("one")
    stat = weights.stat()
    retrained = write_tiny_bert(tmp_path / "retrained", seed=7) / "model.safetensors"
    weights.write_bytes(retrained.read_bytes())  # of the same size, in the same inode
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.stat().st_size == stat.st_size
    new = FlagModel(str(checkpoint), use_fp16=False).encode("one")
    assert np.abs(new - old).max() > 0.01
    assert len(exports) == 2


def test_the_same_checkpoint_elsewhere_is_not_exported_again(checkpoint, exports, tmp_path):
    first = find_bundle(checkpoint)
    moved = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "tiny")
    assert find_bundle(moved) == first
    assert len(exports) == 1


def test_pooling_is_part_of_what_is_exported(checkpoint, exports):
    own = find_bundle(checkpoint)
    assert find_bundle(checkpoint, request=ExportRequest(pooling="cls")) == own
    mean = find_bundle(checkpoint, request=ExportRequest(pooling="mean"))
    assert mean != own
    assert FlagModel(str(checkpoint), pooling_method="mean").bundle.path == mean
    assert FlagModel(str(checkpoint)).bundle.path == own
    assert len(exports) == 2


def test_pooling_counts_without_a_list_of_modules(checkpoint, exports):
    assert not (checkpoint / "modules.json").exists()
    first = find_bundle(checkpoint)
    (checkpoint / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert find_bundle(checkpoint) != first
    assert len(exports) == 2


def test_a_fine_tuned_m3_is_exported_with_its_heads(tiny_m3_checkpoint, exports, tmp_path):
    checkpoint = shutil.copytree(tiny_m3_checkpoint, tmp_path / "fine-tuned")
    model = BGEM3FlagModel(str(checkpoint), use_fp16=False)
    assert model.encode("one", return_colbert_vecs=True)["colbert_vecs"].shape[1] == 48
    assert exports[0][-1] == "encoder-only-m3"
    again = FlagAutoModel.from_finetuned(str(checkpoint), model_class="encoder-only-m3")
    assert again.bundle.path == model.bundle.path
    assert len(exports) == 1


@pytest.mark.parametrize("name", ["FlagModel", "BGEM3FlagModel"])
def test_a_fine_tune_of_flagembedding_pools_as_there(
    upstream, tiny_checkpoint, tiny_m3_checkpoint, exports, tmp_path, name
):
    # Its trainers write no 1_Pooling.
    made = {"FlagModel": tiny_checkpoint, "BGEM3FlagModel": tiny_m3_checkpoint}[name]
    folder = str(shutil.copytree(made, tmp_path / "output" / "checkpoint-1200"))
    options = {"use_fp16": False, "devices": "cpu"}
    theirs = getattr(upstream, name)(folder, **options)
    ours = {"FlagModel": FlagModel, "BGEM3FlagModel": BGEM3FlagModel}[name](folder, **options)
    assert ours.pooling_method == theirs.pooling_method == "cls"
    vectors, expected = ours.encode(TEXTS), theirs.encode(TEXTS)
    if name == "BGEM3FlagModel":
        vectors, expected = vectors["dense_vecs"], expected["dense_vecs"]
    assert_same(vectors, expected)


def test_a_precision_on_request_is_exported_when_requested(checkpoint, exports):
    model = FlagModel(str(checkpoint), precision="int8")
    assert model.engine.info.precision == "int8"
    assert FlagModel(str(checkpoint), use_fp16=False).bundle.path != model.bundle.path
    assert FlagModel(str(checkpoint), precision="int8").bundle.path == model.bundle.path
    assert len(exports) == 2


def test_remains_of_a_killed_exporter_are_not_used_and_are_removed(checkpoint, exports, own_cache):
    entry = find_bundle(checkpoint)
    (entry / "bge.json").unlink()
    partial = own_cache / f".{entry.name}.partial-killed"
    partial.mkdir()
    assert find_bundle(checkpoint) == entry
    assert (entry / "bge.json").is_file()
    assert not partial.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bge.json", ""),
        ("bge.json", '{"format": "bge-runtime bundle", "format_ver'),
        ("bge.json", "[" * 200_000),
        ("bge.json", None),
        ("tokenizer.json", "{"),
        ("onnx/model.onnx_data", None),
        ("1_Pooling/config.json", None),
    ],
)
def test_a_damaged_bundle_in_the_cache_is_exported_again(
    checkpoint, exports, own_cache, name, content
):
    entry = find_bundle(checkpoint)
    path = entry / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    assert find_bundle(checkpoint) == entry
    assert len(exports) == 2
    Bundle.open(entry)


def test_the_error_for_a_changed_bundle_in_the_cache_says_to_delete_it(
    checkpoint, exports, own_cache
):
    entry = find_bundle(checkpoint)
    graph = next((entry / "onnx").glob("*.onnx"))
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(BundleIntegrityError, match=f"delete {entry}, which is a cache"):
        FlagModel(str(checkpoint))
    shutil.rmtree(entry)
    assert FlagModel(str(checkpoint)).encode("text").shape == (48,)


def test_without_a_home_folder_a_checkpoint_is_an_error_and_a_bundle_opens(
    checkpoint, tiny_bundle, monkeypatch
):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(ExportError, match="there is no home folder for the cache; set XDG_CACHE_"):
        FlagModel(str(checkpoint))
    assert FlagModel(str(tiny_bundle)).encode("text").shape == (48,)


def test_a_file_system_without_locks_is_an_error_that_names_the_cache(checkpoint, monkeypatch):
    def refuse(*arguments, **options):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(ExportError, match=r"cannot write to the cache(.|\n)*XDG_CACHE_HOME"):
        FlagModel(str(checkpoint))


def test_last_lines_of_an_exporter_without_an_error_message_are_shown(
    checkpoint, own_cache, monkeypatch
):
    monkeypatch.setattr(export_subprocess, "run_export", lambda *_: (-9, ["loading", "tracing"]))
    with pytest.raises(ExportError) as caught:
        FlagModel(str(checkpoint))
    assert (
        "could not be exported (exit status -9). Its last lines:\n    loading\n    tracing\n"
        in str(caught.value)
    )


@pytest.mark.parametrize("package", ["torch", "transformers", "onnxscript"])
def test_without_the_export_extra_the_error_names_the_command(
    checkpoint, exports, monkeypatch, package
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(ModelNotFoundError, match=f"{package} is not installed") as caught:
        FlagModel(str(checkpoint), pooling_method="mean")
    assert f"bge-export {checkpoint} --output tiny-bundle --pooling mean" in str(caught.value)
    assert exports == []


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(
    checkpoint, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ExportError, match=r"cannot write to the cache(.|\n)*XDG_CACHE_HOME"):
        FlagModel(str(checkpoint))


def test_a_revision_of_a_folder_is_refused(tiny_bundle):
    with pytest.raises(ValueError, match="revision='v1' is for Hub IDs"):
        FlagModel(str(tiny_bundle), revision="v1")


def test_an_export_that_fails_says_why_and_how_to_try_it(checkpoint, own_cache):
    (checkpoint / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ExportError, match="is of type 't5'") as caught:
        FlagModel(str(checkpoint))
    assert f"bge-export {checkpoint} --output {own_cache}" in str(caught.value)
    assert not list(own_cache.glob("tiny-*"))


def test_two_processes_at_once_end_with_one_good_bundle(
    checkpoint, tiny_bundle, tmp_path, expected
):
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), **BARE}
    running = [
        start(checkpoint, tmp_path / f"{n}.npy", environment, exported=tiny_bundle) for n in (1, 2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    for number in (1, 2):
        assert_same(np.load(tmp_path / f"{number}.npy"), expected)
    assert sum(text.count("exporting it once") for text in errors) == 1, errors
    entries = [path for path in (tmp_path / "cache/bge-runtime/bundles").iterdir() if path.is_dir()]
    assert len(entries) == 1


def test_a_killed_export_leaves_nothing_that_is_used(checkpoint, tiny_bundle, tmp_path, expected):
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), **BARE}
    bundles = tmp_path / "cache" / "bge-runtime" / "bundles"
    with start(checkpoint, tmp_path / "v.npy", environment) as process:
        deadline = time.monotonic() + 120
        while not list(bundles.glob(".tiny-*.partial-*/onnx/*")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert list(bundles.glob(".tiny-*.partial-*"))
    assert not list(bundles.glob("tiny-*"))
    assert_same(embed(checkpoint, tmp_path, environment, exported=tiny_bundle), expected)
    assert not list(bundles.glob(".tiny-*.partial-*"))
    assert len(list(bundles.glob("tiny-*"))) == 1


def test_warnings_of_an_on_demand_export_are_logged(caplog: pytest.LogCaptureFixture):
    warning = "bge-export: warning: two opinions"
    lines = f"import sys; print('a step', {warning!r}, sep='\\n', file=sys.stderr)"
    with caplog.at_level(logging.INFO):
        assert export_subprocess.run_export([sys.executable, "-c", lines], {}) == (
            0,
            ["a step", warning],
        )
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "export: a step"),
        ("WARNING", f"export: {warning}"),
    ]
