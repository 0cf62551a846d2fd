"""``bge-export`` from the hub and to it, against a local stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bge_export.bundle.upload import model_card
from bge_runtime import Bundle, FlagModel
from tests.helpers.hub import FAULTS, TOKEN, LocalHub, local_hub
from tests.helpers.rerankers import reranker_bundle
from tests.helpers.runtime import edit_manifest


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[LocalHub]:
    """Serve the tiny checkpoint as BAAI/bge-small-en."""
    with local_hub() as serving:
        files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
        # Kept beside the safetensors by many repositories.
        files |= {"tf_model.h5": b"", "pytorch_model.bin": b""}
        serving.add("BAAI/bge-small-en", files, "v1")
        yield serving


def run(
    environment: dict[str, str], tmp_path: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    # The hub's address is read when huggingface_hub is imported: a process of its own.
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def export(
    environment: dict[str, str], tmp_path: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return run(environment, tmp_path, "-m", "bge_export.cli", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BAAI/nothing"], "the hub has no repository BAAI/nothing"),
        (["BAAI/bge-small-en", "--revision", "v9"], "has no revision 'v9'"),
        (["BAAI/nothing", "--offline"], "and --offline forbids downloading it"),
    ],
)
def test_hub_refusals(hub: LocalHub, tmp_path: Path, arguments: list[str], message: str):
    result = export(hub.environment(tmp_path), tmp_path, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_unreachable_hub(tmp_path: Path):
    away = LocalHub()
    away.address = "http://127.0.0.1:9"
    result = export(away.environment(tmp_path), tmp_path, "BAAI/bge-small-en")
    assert result.returncode == 1
    assert "the hub cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


# -- What networks do ---------------------------------------------------------------------

FAULTY = """
import json, os, shutil, sys, time
from pathlib import Path
from tests.helpers.hub import FAULTS, local_hub
home = Path(sys.argv[1])
with local_hub() as hub:
    os.environ |= hub.environment(home)
    from huggingface_hub import constants
    constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.1
    from bge_export.checkpoint.find import find_checkpoint
    from bge_runtime.errors import HubError
    from bge_runtime.sources.hub import find_snapshot
    slept = []
    time.sleep = slept.append
    files = {"config.json": b"{}", "model.safetensors": b"x" * 1000}
    for repo in ("me/new", "me/cached"):
        hub.add(repo, files)
    cached = find_snapshot("me/cached")
    told = []
    for fault in (*FAULTS, *(400, 401, 403, 404, 429, 500, 503)):
        for only in ("", "GET /me/"):
            hub.fault, hub.only = fault, only
            for find, repo in (
                (find_snapshot, "me/new"), (find_checkpoint, "me/new"), (find_snapshot, "me/cached")
            ):
                slept.clear()
                start = time.monotonic()
                try:
                    said = "cached" if find(repo) == cached else "found"
                except HubError as error:
                    said = str(error)
                except Exception as error:
                    said = repr(error)
                took = time.monotonic() - start + sum(slept)
                told.append([str(fault), only, find.__name__, repo, said, took])
            shutil.rmtree(home / "hf" / "hub" / "models--me--new", ignore_errors=True)
print(json.dumps(told))
"""


def test_whatever_a_network_does_is_one_sentence_in_time_and_a_filled_cache_is_used(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == (len(FAULTS) + 7) * 2 * 3
    for fault, only, find, repo, said, took in told:
        case = f"{fault!r} of {only or 'all'} in {find}({repo!r}): {said}"
        if repo == "me/cached":
            assert said == "cached", case
        else:
            assert re.fullmatch(r"cannot fetch me/new: the hub [^\n\r\0-\x1f]+\. [A-Z].+", said), (
                case
            )
            assert len(said) < 400, case
            if fault.isdecimal():
                assert f"status {fault}" in said, case
        # One question is not asked again; a download is, as often as huggingface_hub does.
        assert took < (60 if only and repo == "me/new" else 5), f"{case} after {took:.1f} s"
    # Neither its retries nor anything else of huggingface_hub, but what we say ourselves.
    lines = {line for line in done.stderr.splitlines() if line.strip() and "Fetching" not in line}
    assert all(line.startswith("using the cached files of me/cached: ") for line in lines), lines


def test_a_cache_that_cannot_be_written_is_named(hub: LocalHub, tmp_path: Path):
    (tmp_path / "file").write_text("")
    environment = {**hub.environment(tmp_path), "HF_HUB_CACHE": str(tmp_path / "file" / "cache")}
    result = export(environment, tmp_path, "BAAI/bge-small-en")
    assert result.returncode == 1
    assert "the hub's cache cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


# -- To the hub ---------------------------------------------------------------------------

EMBED = """
import sys, numpy as np
from bge_runtime import FlagModel
np.save(sys.argv[2], FlagModel(sys.argv[1], use_fp16=False).encode(["hello world"]))
assert "torch" not in sys.modules
"""


FIND = """
import sys
from bge_export.checkpoint.find import find_checkpoint
print(*find_checkpoint(sys.argv[1], revision=sys.argv[2], offline=True))
"""


def test_hub_id_is_fetched_once_and_pinned_and_its_bundle_used_from_the_hub(
    hub: LocalHub, tmp_path: Path, tiny_bundle: Path
):
    environment = {**hub.environment(tmp_path), "HF_TOKEN": TOKEN}
    exported = export(
        environment, tmp_path, "BAAI/bge-small-en", "--revision", "v1", "--target", "cpu",
        "--push-to-hub", "me/tiny",
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    folder = tmp_path / "bge-small-en"
    manifest = json.loads((folder / "bge.json").read_text())
    commit = hub.refs["BAAI/bge-small-en"]["v1"]
    assert manifest["provenance"]["revision"] == commit
    assert manifest["model"]["name"] == "bge-small-en"
    assert manifest["model"]["query_instruction"].startswith("Represent this sentence")
    assert not [line for line in hub.requests if "tf_model" in line or "pytorch_model" in line]
    assert "uploaded: " in exported.stdout
    files = hub.repos["me/tiny"][hub.refs["me/tiny"]["main"]]
    for path in folder.rglob("*"):
        if path.is_file():
            assert files[str(path.relative_to(folder))] == path.read_bytes()
    assert "base_model: BAAI/bge-small-en" in files["README.md"].decode()

    hub.requests.clear()
    found = run(environment, tmp_path, "-c", FIND, "BAAI/bge-small-en", "v1")
    assert found.stdout.split()[1] == commit, found.stderr
    assert hub.requests == []

    shutil.rmtree(tmp_path / "hf")
    used = run(environment, tmp_path, "-c", EMBED, "me/tiny", "v.npy")
    assert used.returncode == 0, used.stderr
    expected = FlagModel(str(tiny_bundle), use_fp16=False).encode(["hello world"])
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-5)


PUSH = """
import sys
from pathlib import Path
from bge_export.bundle.upload import push
push(Path(sys.argv[1]), sys.argv[2], private=False)
"""


def test_a_new_bundle_takes_the_old_ones_place(hub: LocalHub, tmp_path: Path, tiny_bundle: Path):
    old = {"README.md": b"mine", "onnx/old.onnx": b"old", "LICENSE": b"mine", "bge.json": b"{}"}
    hub.add("me/tiny", old)
    environment = {**hub.environment(tmp_path), "HF_TOKEN": TOKEN}
    pushed = run(environment, tmp_path, "-c", PUSH, str(tiny_bundle), "me/tiny")
    assert pushed.returncode == 0, pushed.stderr
    files = hub.repos["me/tiny"][hub.refs["me/tiny"]["main"]]
    assert files["README.md"] == files["LICENSE"] == b"mine"
    assert "onnx/old.onnx" not in files
    assert files["bge.json"] == (tiny_bundle / "bge.json").read_bytes()


def test_a_checkpoints_repository_is_refused_before_anything_is_exported(
    hub: LocalHub, tmp_path: Path
):
    hub.add("me/model", {"model.safetensors": b"", "config.json": b"{}", "onnx/theirs.onnx": b""})
    environment = {**hub.environment(tmp_path), "HF_TOKEN": TOKEN}
    result = export(environment, tmp_path, "BAAI/bge-small-en", "--push-to-hub", "me/model")
    assert result.returncode == 1
    assert "me/model holds a checkpoint (model.safetensors), whose configuration" in result.stderr


def test_other_peoples_graphs_stay(hub: LocalHub, tmp_path: Path, tiny_bundle: Path):
    hub.add("me/tiny", {"onnx/theirs.onnx": b"theirs"})
    environment = {**hub.environment(tmp_path), "HF_TOKEN": TOKEN}
    pushed = run(environment, tmp_path, "-c", PUSH, str(tiny_bundle), "me/tiny")
    assert pushed.returncode == 0, pushed.stderr
    assert hub.repos["me/tiny"][hub.refs["me/tiny"]["main"]]["onnx/theirs.onnx"] == b"theirs"


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("", "me/tiny", "log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "me/tiny", "cannot push to me/tiny: "),
        (TOKEN, "tiny", "--push-to-hub takes OWNER/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_exported(
    hub: LocalHub, tmp_path: Path, token: str, repo: str, message: str
):
    environment = {**hub.environment(tmp_path), "HF_TOKEN": token}
    result = export(environment, tmp_path, "BAAI/bge-small-en", "--push-to-hub", repo)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "bge-small-en").exists()
    assert not [line for line in hub.requests if "bge-small-en" in line]


def test_the_card_says_what_is_inside(bundle_copy: Path):
    edit_manifest(bundle_copy, lambda data: data["provenance"].update(random_seed=3))
    card = model_card(Bundle.at(bundle_copy).manifest, "me/tiny")
    assert card.startswith("---\nlibrary_name: bge-runtime\n")
    assert "base_model" not in card  # it was made of a folder
    assert "Its weights are random" in card
    assert 'FlagModel("me/tiny")' in card
    assert "| cpu-fp32 | onnxruntime | fp32 | " in card


def test_the_card_of_a_reranker_shows_how_to_score(made_once: Callable[..., Path]):
    card = model_card(Bundle.at(reranker_bundle("bert")).manifest, "me/tiny")
    assert "pipeline_tag: text-ranking\n" in card
    assert 'FlagReranker("me/tiny").compute_score([("a query", "a passage")])' in card
    assert "| largest difference from PyTorch's fp32 scores |" in card
