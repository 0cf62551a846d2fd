"""`embed_dataset` on a cluster: the shards of a local run, whatever happens to nodes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow.fs import FileSelector, FileSystem

from bge_runtime.bulk import InputError, OutputError, embed_dataset
from bge_runtime.bulk.cluster import pool
from bge_runtime.bulk.cluster.actor import Described, check_inputs, check_reachable
from bge_runtime.bulk.files import open_location
from bge_runtime.bulk.options import EncodeOptions
from bge_runtime.bulk.output import OutputFolder
from bge_runtime.bulk.vectors import ModelDescription
from bge_runtime.errors import BgeError
from tests.cluster.conftest import ThreeNodes
from tests.helpers.s3 import s3_network

ROWS, ROWS_PER_SHARD = 6000, 200


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of texts of many lengths, with an id column, and one to keep."""
    words = [f"entry {row}: {'some words ' * (row * 7 % 40)}" for row in range(ROWS)]
    table = pa.table(
        {
            "key": [f"k{row}" for row in range(ROWS)],
            "text": words,
            "year": pa.array([1900 + row % 100 for row in range(ROWS)], pa.int16()),
        }
    )
    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    pq.write_table(table, path)
    return path


OPTIONS: dict[str, Any] = {"id": "key", "keep": ["year"], "rows_per_shard": ROWS_PER_SHARD}
M3_OPTIONS = {**OPTIONS, "return_sparse": True, "return_colbert_vecs": True}


@pytest.fixture(scope="module")
def local(texts: Path, bundles: dict[str, str], tmp_path_factory) -> Path:
    """The output of a run in one process."""
    folder = tmp_path_factory.mktemp("local") / "out"
    embed_dataset(bundles["dense"], texts, folder, **OPTIONS)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each shard."""
    files = sorted(folder.glob("*.parquet"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def records(folder: Path) -> dict[str, Any]:
    """Return the description of a job and its records, without times."""
    found = {}
    for file in sorted((folder / "_manifest").glob("*.json")):
        record = found[file.name] = json.loads(file.read_text())
        record.pop("checksum", None)
        for name, written in record.get("files", {}).items():
            record["files"][name] = written["size_bytes"], written["sha256"]
    return found


def test_shards_and_manifest_are_those_of_a_local_run(cluster, texts, bundles, local, tmp_path):
    out = tmp_path / "out"
    done = embed_dataset(bundles["dense"], texts, out, engine="ray", **OPTIONS)
    assert (done.rows, done.embedded, done.shards_done_before) == (ROWS, ROWS, 0)
    assert done.complete
    assert len(hashes(local)) == ROWS // ROWS_PER_SHARD
    assert hashes(out) == hashes(local)
    assert records(out) == records(local)
    assert list((out / "_temporary").iterdir()) == []
    table = pq.read_table(out)
    assert table["id"].to_pylist() == [f"k{row}" for row in range(ROWS)]

    again = embed_dataset(bundles["dense"], texts, out, engine="ray", **OPTIONS)
    assert again.shards_done_before == again.shards == done.shards
    assert hashes(out) == hashes(local)


def test_a_job_may_begin_in_one_process_and_end_on_a_cluster(
    cluster, texts, bundles, local, tmp_path
):
    first = embed_dataset(bundles["dense"], texts, tmp_path / "out", shard="1/2", **OPTIONS)
    assert not first.complete
    done = embed_dataset(bundles["dense"], texts, tmp_path / "out", engine="ray", **OPTIONS)
    assert done.complete
    assert done.shards_done_before == first.shards
    assert hashes(tmp_path / "out") == hashes(local)


def test_three_outputs_of_m3_are_those_of_a_local_run(cluster, texts, bundles, tmp_path):
    small = tmp_path / "small.parquet"
    pq.write_table(pq.read_table(texts).slice(0, 3 * ROWS_PER_SHARD), small)
    for engine in ("local", "ray"):
        embed_dataset(bundles["m3"], small, tmp_path / engine, engine=engine, **M3_OPTIONS)
    assert len(hashes(tmp_path / "ray")) == 3
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "local")


def test_input_and_output_may_be_on_s3(cluster, texts, bundles, local):
    with s3_network() as network:
        source, _ = FileSystem.from_uri(network.uri("texts"))
        source.create_dir("bucket/texts")
        with source.open_output_stream("bucket/texts/texts.parquet") as stream:
            stream.write(texts.read_bytes())
        inputs, out = network.uri("texts/texts.parquet"), network.uri("vectors")
        done = embed_dataset(bundles["dense"], inputs, out, engine="ray", **OPTIONS)
        assert done.complete
        found = source.get_file_info(FileSelector("bucket/vectors"))
        written = {
            file.base_name: hashlib.sha256(source.open_input_file(file.path).read()).hexdigest()
            for file in found
            if file.extension == "parquet"
        }
    assert written == hashes(local)


def test_a_node_killed_while_it_computes_changes_nothing(
    cluster: ThreeNodes, texts, bundles, local, tmp_path, caplog
):
    out = tmp_path / "out"
    killed_after: list[int] = []

    def kill_after_some_shards() -> None:
        while (done := len(list((out / "_manifest").glob("part-*.json")))) < 4:
            time.sleep(0.02)
        cluster.kill_a_node()
        killed_after.append(done)

    killer = threading.Thread(target=kill_after_some_shards)
    killer.start()
    done = embed_dataset(
        bundles["dense"], texts, out, engine="ray", ray_options={"concurrency": 3}, **OPTIONS
    )
    killer.join()
    assert killed_after[0] < done.shards
    assert "an actor was lost" in caplog.text
    assert done.complete
    assert hashes(out) == hashes(local)
    assert records(out) == records(local)


# -- Errors --------------------------------------------------------------------------------


def error_of(call: Callable[[], object]) -> Exception:
    with pytest.raises(BgeError) as caught:
        call()
    return caught.value


def test_errors_are_those_of_a_local_run(cluster, bundles, tmp_path):
    bad = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"text": ["one", "two", None, "four"]}), bad)

    def run(engine: str) -> Callable[[], object]:
        return lambda: embed_dataset(
            bundles["dense"], bad, tmp_path / "out", engine=engine, on_empty="stop"
        )

    expected, found = error_of(run("local")), error_of(run("ray"))
    assert "row 2" in str(expected)
    assert type(found) is type(expected) is InputError
    assert str(found) == str(expected)


def test_a_model_that_cannot_be_opened_is_one_error(cluster, texts, tmp_path):
    def run(engine: str) -> Callable[[], object]:
        model = tmp_path / "nothing"
        return lambda: embed_dataset(model, texts, tmp_path / "out", engine=engine, **OPTIONS)

    assert str(error_of(run("ray"))) == str(error_of(run("local")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_the_job_goes_on_later(
    cluster, texts, bundles, local, small_disk, tmp_path
):
    def run() -> object:
        return embed_dataset(bundles["dense"], texts, small_disk / "out", engine="ray", **OPTIONS)

    assert "No space left on device" in str(error_of(run))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    run()
    assert hashes(small_disk / "out") == hashes(local)


def test_an_output_that_a_node_does_not_share_is_refused(tmp_path):
    folder = OutputFolder(open_location(str(tmp_path / "out")))
    folder.create()
    with folder.probe() as probe:
        check_reachable(folder, probe)
    with pytest.raises(OutputError, match="Name a folder that all nodes share"):
        check_reachable(folder, probe)


def test_an_input_that_a_node_does_not_have_is_refused(texts, bundles, tmp_path, monkeypatch):
    from bge_runtime.bulk import embed

    jobs: list[Any] = []
    monkeypatch.setattr(embed, "run_shards", lambda job, *_, **__: jobs.append(job) or {})
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(texts.read_bytes())
    with pytest.raises(KeyError):  # there are no records
        embed_dataset(bundles["dense"], copy, tmp_path / "out", **OPTIONS)
    check_inputs(jobs[0], 0)
    os.truncate(copy, 100)
    with pytest.raises(InputError, match=r"has 100 bytes there"):
        check_inputs(jobs[0], 0)
    copy.unlink()
    with pytest.raises(InputError, match="Put it where all nodes read it"):
        check_inputs(jobs[0], 0)


def test_an_opened_model_is_refused(texts, tmp_path):
    with pytest.raises(TypeError, match="opens the model on every node"):
        embed_dataset(object(), texts, tmp_path / "out", engine="ray", **OPTIONS)


# -- Which actor computes which shard ------------------------------------------------------


def model_in(precision: str, engine: str) -> ModelDescription:
    encode = EncodeOptions(
        outputs=("dense",), dtype="float32", colbert_dtype="float16", query=False, max_length=512,
        batch_size=256,
    )  # fmt: skip
    return ModelDescription(
        document={"precision": precision}, made_with={"engine": engine}, fields=[], encode=encode
    )


class FakeActor:
    """Computes nothing; dies with some shards."""

    def __init__(self, precision: str, fatal: int | None = None, engine: str = "1.0") -> None:
        self._precision, self._fatal, self._engine = precision, fatal, engine

    def describe(self) -> Described:
        return Described(f"node-{self._precision}", model_in(self._precision, self._engine))

    def run(self, work: object, shard: int) -> dict[str, int]:
        if shard == self._fatal:
            os._exit(1)
        time.sleep(0.005)
        return {"rows": shard}

    def close(self) -> None:
        """Do nothing."""


MANY = 10_000
"""Shards that last until a second actor has started."""


def start_fakes(*arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """Return a function that starts actors with these arguments, the last ones again and again."""
    remote, left = ray.remote(FakeActor).options(num_cpus=0, max_restarts=0), list(arguments)
    return lambda: remote.remote(*(left.pop(0) if len(left) > 1 else left[0]))


def test_nodes_that_run_another_precision_are_refused(cluster):
    actors = pool.ActorPool(start_fakes(("fp32",), ("bf16",)), 2)
    actors.describe()
    with pytest.raises(BgeError) as refused:
        dict(actors.run(range(MANY), []))
    assert "node node-bf16 runs the model otherwise than node node-fp32" in str(refused.value)
    assert "precision 'bf16' and not 'fp32'" in str(refused.value)
    actors.close()


def test_nodes_with_another_version_are_warned_of(cluster, caplog):
    actors = pool.ActorPool(start_fakes(("fp32",), ("fp32", None, "1.1")), 2)
    actors.describe()
    said = "node node-fp32 computes with {'engine': '1.1'}"
    assert any(said in caplog.text for _ in actors.run(range(MANY), []))
    actors.close()


def test_a_shard_of_a_lost_actor_goes_to_another_one(cluster):
    actors = pool.ActorPool(start_fakes(("fp32", 3), ("fp32",)), 2)
    actors.describe()
    found = dict(actors.run(range(8), []))
    assert found == {shard: {"rows": shard} for shard in range(8)}
    actors.close()


def test_a_shard_that_ends_each_process_ends_the_job(cluster, monkeypatch):
    monkeypatch.setattr(pool, "_ATTEMPTS", 2)
    actors = pool.ActorPool(start_fakes(("fp32", 1)), 1)
    actors.describe()
    with pytest.raises(BgeError, match="2 actors were lost while they computed shard 1"):
        dict(actors.run(range(3), []))
    actors.close()
